"""Are a model's latents used? Looked at every so often on validation rows; told when they are not.

Nothing follows for the weights. All ranks come here together and find the same.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from pydantic import Field

from genmod import storage, units
from genmod.config import Config
from genmod.data.format.image_grid import grid, png
from genmod.errors import TrainingDiverged
from genmod.interface.batch import Batch
from genmod.interface.latents import kl_per_unit, latent_usage
from genmod.interface.model import GenerativeModel
from genmod.rng import rng_for
from genmod.training.monitors.collapse import MonitorState
from genmod.training.step_metrics import HINT
from genmod.training.writer import storage_errors
from genmod.world import World

logger = logging.getLogger(__name__)

MEND = (
    "let the weight of the KL term grow from 0 (net.kl_warmup_nimg), or give free bits "
    "(net.free_bits_nats)"
)


class LatentMonitorConfig(Config):
    """When latents are looked at, and what counts as posterior collapse."""

    every_nimg: int = Field(default=20_000, gt=0)
    """Between looks."""
    rows: int = Field(default=256, ge=2)
    """Rows of the ``val`` split, at most. What mutual information can be seen is the logarithm of it."""
    start_nimg: int = Field(default=10_000, ge=0)
    """Until then nothing is a collapse."""
    least_active_share: float = Field(default=0.05, ge=0, le=1)
    """Fewer of the units than this active: the posterior has collapsed."""
    least_kl_nats: float = Field(default=1.0, ge=0)
    """Less KL from the prior than this, all units together, too."""


LATENT_IMAGES = "latents"
"""Below a model's root: what the latents hold of images, and what their units do."""

_SHOWN, _UNITS, _STEPS = 10, 4, 9
"""Images that are reconstructed; units that are traversed, and in how many images."""


@dataclass(frozen=True)
class LatentMonitor:
    """Encodes fixed rows."""

    config: LatentMonitorConfig
    real: Batch
    """Validation rows, the same on every rank."""
    seed: int

    @torch.no_grad()
    def look(
        self, model: GenerativeModel, watch: MonitorState, nimg: int, world: World
    ) -> dict[str, float]:
        """Measure how latents are used; note where that turns bad, and where it is good again.

        Raises:
            TrainingDiverged: on all ranks alike, if a number is not finite.
        """
        real = self.real.to(world.device)
        rng = rng_for(self.seed, "train/latents", range(len(real)), world.device)
        found = latent_usage(model.latents(real, rng))
        if bad := [name for name, value in found.items() if not math.isfinite(value)]:
            raise TrainingDiverged(
                f"latents of the averaged weights have no finite {bad[0]} on the validation rows at "
                f"{nimg:,} images; {HINT}"
            )
        told = latent_problems(self.config, found, nimg)
        if told and not watch.latents_idle:
            watch.events.append(
                f"at {nimg:,} images: posterior collapse: {' and '.join(told)}; {MEND}"
            )
        if watch.latents_idle and not told:
            watch.events.append(f"at {nimg:,} images: the latents are in use again")
        watch.latents_idle = bool(told)
        if told and world.rank == 0:
            logger.warning(
                "posterior collapse at %s images: %s; %s", f"{nimg:,}", " and ".join(told), MEND
            )
        told_of = found | {"collapsed": float(bool(told))}
        return {f"latents/{name}": value for name, value in told_of.items()}

    @torch.no_grad()
    def show(self, model: GenerativeModel, root: str, device: torch.device) -> None:
        """Write two pictures of what latents hold and do. For one rank.

        ``reconstructions.png``: images above what a draw of q(z | x) is decoded to. ``traversals.png``: a row
        for each of the units of largest KL, which goes from -3 to 3 of the prior's standard deviations in
        the first image's latents.
        """
        real = self.real.to(device)
        rng = rng_for(self.seed, "train/latents", range(len(real)), device)
        latents = model.latents(real, rng)
        few = real.rows(slice(0, _SHOWN))
        again_NCHW = model.decode_latents(latents.z_BZ[:_SHOWN], few.labels_B)
        both_NCHW = torch.cat((few.pixels_BCHW, units.to_pixels(again_NCHW)))
        order = kl_per_unit(latents).argsort(descending=True)[:_UNITS].tolist()
        z_NZ = latents.z_BZ[:1].repeat(len(order) * _STEPS, 1)
        wide = latents.prior.moments(z_NZ)
        for row, unit in enumerate(order):
            mean, std = wide.mean_BZ[0, unit], wide.log_std_BZ[0, unit].exp()
            away_S = torch.linspace(-3, 3, _STEPS, device=device)
            z_NZ[row * _STEPS : (row + 1) * _STEPS, unit] = mean + std * away_S
        labels_N = None if real.labels_B is None else real.labels_B[:1].repeat(len(z_NZ))
        moved_NCHW = units.to_pixels(model.decode_latents(z_NZ, labels_N))
        scale = max(1, 56 // max(moved_NCHW.shape[2:]))
        folder = storage.join(root, LATENT_IMAGES)
        for name, pixels_NCHW, columns in (
            ("reconstructions.png", both_NCHW, len(few)),
            ("traversals.png", moved_NCHW, _STEPS),
        ):
            with storage_errors(folder, f"the picture {name}"):
                data = png(grid(pixels_NCHW.cpu(), columns, scale))
                storage.write_bytes(storage.join(folder, name), data)


def latent_problems(config: LatentMonitorConfig, found: dict[str, float], nimg: int) -> list[str]:
    """What a look speaks against the latents, in words; nothing within the grace."""
    if nimg < config.start_nimg:
        return []
    told: list[str] = []
    share, kl_nats = found["active_share"], found["kl_nats"]
    if share < config.least_active_share:
        told.append(
            f"{share:.1%} of the units are active, at least {config.least_active_share:.1%} is wanted"
        )
    if kl_nats < config.least_kl_nats:
        told.append(f"KL {kl_nats:.3g} nats, at least {config.least_kl_nats:g} is wanted")
    return told
