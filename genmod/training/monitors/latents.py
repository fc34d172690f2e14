"""Monitors whether a model uses its latents, on validation rows; warns of posterior collapse.

It changes no weights. Collective: all ranks evaluate together and measure the same. Letters: B batch, C
channels, H height, W width, N images, S images of a traversal, Z latents.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from genmod import storage, units
from genmod.config import Config
from genmod.data.format.image_grid import grid, png
from genmod.errors import TrainingDiverged
from genmod.interface.batch import Batch
from genmod.interface.latents import Latents, kl_per_unit, latent_usage
from genmod.interface.model import GenerativeModel
from genmod.interface.options import MAX_NIMG
from genmod.rng import rng_for
from genmod.training.monitors.collapse import MonitorState
from genmod.training.writer import storage_errors
from genmod.world import World

logger = logging.getLogger(__name__)

LATENT_IMAGES = "latents"
"""Folder below a model's root for images of what the latents encode."""

_RECONSTRUCTIONS = 10
_TRAVERSED_UNITS = 4
_TRAVERSAL_IMAGES = 9


class LatentMonitorConfig(Config):
    """The recipe's ``train.latent_monitor``: when to check latents, and what counts as posterior collapse."""

    every_nimg: int = Field(default=20_000, gt=0, le=MAX_NIMG)
    """Images between checks."""
    rows: int = Field(default=256, ge=2, le=1_000_000)
    """Rows of the ``val`` split, at most. The logarithm of it limits the mutual information that can be
    measured."""
    start_nimg: int = Field(default=10_000, ge=0, le=MAX_NIMG)
    """Images seen before a check may count as a collapse."""
    min_active_share: float = Field(default=0.05, ge=0, le=1)
    """A smaller share of active units is a posterior collapse."""
    min_kl_nats: float = Field(default=1.0, ge=0, le=1e6)
    """Less KL from the prior, over all units together, is a posterior collapse."""


@dataclass(frozen=True)
class LatentMonitor:
    """Encodes fixed rows and measures how the latents are used."""

    config: LatentMonitorConfig
    real: Batch
    """Validation rows, the same on every rank."""
    seed: int

    @torch.no_grad()
    def evaluate(
        self, model: GenerativeModel, monitors: MonitorState, nimg: int, world: World
    ) -> dict[str, float]:
        """Measure how the latents are used; record and log where a collapse starts or ends.

        Returns:
            The metrics to log, named ``latents/...``.

        Raises:
            TrainingDiverged: on all ranks alike, if a value is not finite.
        """
        measured = latent_usage(self._encode(model, world.device))
        if bad := [name for name, value in measured.items() if not math.isfinite(value)]:
            raise TrainingDiverged(
                f"training diverged: {bad[0]} of the EMA weights' latents is not finite on the validation "
                f"rows at {nimg:,} images"
            )
        problems = latent_problems(self.config, measured, nimg)
        message = (
            f"at {nimg:,} images: posterior collapse: {' and '.join(problems)}; "
            f"{model.hint('posterior_collapse')}"
        )
        if problems and not monitors.posterior_collapsed:
            monitors.events.append(message)
        if monitors.posterior_collapsed and not problems:
            monitors.events.append(f"at {nimg:,} images: the posterior collapse has ended")
        monitors.posterior_collapsed = bool(problems)
        if problems and world.rank == 0:
            logger.warning("%s", message)
        metrics = measured | {"collapsed": float(bool(problems))}
        return {f"latents/{name}": value for name, value in metrics.items()}

    @torch.no_grad()
    def draw(self, model: GenerativeModel, root: str, device: torch.device) -> None:
        """Write two images of what the latents encode. For rank 0 alone.

        ``latents/reconstructions.png``: validation images above the decoded draws of their q(z | x).
        ``latents/traversals.png``: one row for each of the units of largest KL, which goes from -3 to 3 of
        the prior's standard deviations while the other units keep the first image's latents.

        Raises:
            StorageError: an image cannot be written.
        """
        latents = self._encode(model, device)
        shown = self.real.to(device).rows(slice(0, _RECONSTRUCTIONS))
        decoded_NCHW = units.to_pixels(
            model.decode_latents(latents.z_BZ[:_RECONSTRUCTIONS], shown.labels_B)
        )
        pairs_NCHW = torch.cat((shown.pixels_BCHW, decoded_NCHW))
        z_NZ = _traversals(latents)
        labels_N = None if shown.labels_B is None else shown.labels_B[:1].repeat(len(z_NZ))
        traversed_NCHW = units.to_pixels(model.decode_latents(z_NZ, labels_N))
        scale = max(1, 56 // max(traversed_NCHW.shape[2:]))
        folder = storage.join(root, LATENT_IMAGES)
        for name, pixels_NCHW, columns in (
            ("reconstructions.png", pairs_NCHW, len(shown)),
            ("traversals.png", traversed_NCHW, _TRAVERSAL_IMAGES),
        ):
            with storage_errors(folder, f"the image {name}"):
                data = png(grid(pixels_NCHW.cpu(), columns, scale))
                storage.write_bytes(storage.join(folder, name), data)

    def _encode(self, model: GenerativeModel, device: torch.device) -> Latents:
        real = self.real.to(device)
        return model.latents(real, rng_for(self.seed, "train/latents", range(len(real)), device))


def _traversals(latents: Latents) -> Tensor:
    """The first row's latents, (N, Z), with one unit at a time moved across the prior."""
    order = kl_per_unit(latents).argsort(descending=True)[:_TRAVERSED_UNITS].tolist()
    z_NZ = latents.z_BZ[:1].repeat(len(order) * _TRAVERSAL_IMAGES, 1)
    prior = latents.prior.moments(z_NZ)
    for row, unit in enumerate(order):
        mean, std = prior.mean_BZ[0, unit], prior.log_std_BZ[0, unit].exp()
        steps_S = torch.linspace(-3, 3, _TRAVERSAL_IMAGES, device=z_NZ.device)
        z_NZ[row * _TRAVERSAL_IMAGES : (row + 1) * _TRAVERSAL_IMAGES, unit] = mean + std * steps_S
    return z_NZ


def latent_problems(
    config: LatentMonitorConfig, measured: dict[str, float], nimg: int
) -> list[str]:
    """Why the posterior counts as collapsed, one phrase each; empty before ``start_nimg``."""
    if nimg < config.start_nimg:
        return []
    problems: list[str] = []
    share, kl_nats = measured["active_share"], measured["kl_nats"]
    if share < config.min_active_share:
        problems.append(
            f"{share:.1%} of the units are active, expected at least {config.min_active_share:.1%}"
        )
    if kl_nats < config.min_kl_nats:
        problems.append(f"KL {kl_nats:.3g} nats, expected at least {config.min_kl_nats:g}")
    return problems
