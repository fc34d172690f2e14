"""Are samples still as various as the data? Looked at every so often; on a collapse, one way back.

Training that plays two nets against each other has no loss that says how it goes. So samples of the averaged
weights are compared with real validation rows, in one simple space: images averaged down to at most 8x8.
All ranks come here together and decide alike. Letters: N samples, M real rows, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genmod import units
from genmod.config import Config
from genmod.errors import TrainingCollapsed
from genmod.interface.batch import Batch
from genmod.interface.model import GenerativeModel
from genmod.metrics.neighbours import neighbour_radii, squared_distances
from genmod.rng import rng_for
from genmod.world import World

_FEATURE_SIDE = 8
"""Images are averaged down to at most this height and width."""
_BATCH_ROWS = 64
"""Samples that are made together."""


class CollapseConfig(Config):
    """When samples are looked at, what counts as collapse, and what is done then.

    Seen in ten-minute runs on Fashion-MNIST (tests/benchmarks/_quality_gan.py; 256 rows): coverage 0.71
    to 0.95 after 50,000 images and 0.95 to 0.98 at the end, never below 0.97 of the best before; duplicates
    at most 0.02, real images' 0.01. Samples that are 2, 8 or 32 images and a little noise: coverage 0.05,
    0.20, 0.53, duplicates 1.0 each. So coverage tells deep collapses, and duplicates alone that onto 32
    images.
    """

    every_nimg: int = Field(default=20_000, gt=0)
    """Between looks."""
    rows: int = Field(default=256, ge=16)
    """Samples and validation rows, at most."""
    neighbours: int = Field(default=5, gt=0)
    """The k of the balls in coverage and recall."""
    start_nimg: int = Field(default=40_000, ge=0)
    """Until then nothing is a collapse."""
    least_coverage: float = Field(default=0.1, ge=0, le=1)
    """Below it, training has collapsed."""
    least_of_best: float = Field(default=0.5, ge=0, le=1)
    """Below this share of the best coverage so far, too."""
    most_duplicates: float = Field(default=0.9, ge=0, le=1)
    """Above this share of samples that are near copies of others, too. Near 1, since data whose images differ
    little make healthy samples look like copies."""
    patience: int = Field(default=2, gt=0)
    """Looks in a row that must say so."""
    lr_factor: float = Field(default=0.5, gt=0, le=1)
    """On a collapse: every learning rate times this, from the best averaged weights."""
    penalty_factor: float = Field(default=4.0, ge=1)
    """And what the model holds training back with (a GAN's gamma) times this."""
    retries: int = Field(default=1, ge=0)
    """So often; the next collapse ends training."""


@dataclass
class MonitorState:
    """What was seen so far: part of the training state."""

    best_coverage: float = 0.0
    best_nimg: int = -1
    bad_checks: int = 0
    retried: int = 0
    lr_scale: float = 1.0
    """Of every learning rate."""
    latents_idle: bool = False
    """Whether the newest look at latents found the posterior collapsed."""
    events: list[str] = field(default_factory=list[str])
    """What happened when, in words."""
    best: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Averaged weights of the best look, on the CPU."""

    def as_json(self) -> dict[str, Any]:
        """All but the weights."""
        return {name: value for name, value in vars(self).items() if name != "best"}

    @classmethod
    def from_json(cls, values: dict[str, Any], best: dict[str, Tensor]) -> Self:
        """What :meth:`as_json` gave, and the weights."""
        return cls(**values, best=best)


@dataclass(frozen=True)
class CollapseMonitor:
    """Makes samples and compares them."""

    config: CollapseConfig
    real: Batch
    """Validation rows, the same on every rank."""
    seed: int
    options: Any
    """The family's sampling options."""

    def measure(self, model: GenerativeModel, world: World) -> dict[str, float]:
        """Coverage, recall, duplicates, and how classes fall, of samples with the labels of the real rows."""
        rows = min(self.config.rows, len(self.real))
        real = self.real.rows(slice(0, rows)).to(world.device)
        rng = rng_for(self.seed, "train/watch", range(rows), world.device)
        pixels_NCHW = torch.zeros(rows, *model.spec.shape, device=world.device)
        for number, first in enumerate(range(0, rows, _BATCH_ROWS)):
            if number % world.size == world.rank:
                piece = slice(first, min(first + _BATCH_ROWS, rows))
                labels_B = None if real.labels_B is None else real.labels_B[piece]
                x_BCHW = model.sample(labels_B, rng.rows(piece), self.options)
                pixels_NCHW[piece] = units.to_pixels(x_BCHW).float()
        pixels_NCHW = (world.mean(pixels_NCHW) * world.size).round()
        fake_ND, real_MD = _features(pixels_NCHW), _features(real.pixels_BCHW)
        labels_M = None if real.labels_B is None else real.labels_B.cpu()
        return sample_statistics(
            fake_ND, real_MD, labels_M, model.spec.classes, self.config.neighbours
        )


def sample_statistics(
    fake_ND: Tensor, real_MD: Tensor, labels_M: Tensor | None, classes: int, k: int
) -> dict[str, float]:
    """Coverage and recall (Naeem et al. 2020, Kynkäänniemi et al. 2019), duplicates, classes.

    ``duplicates``: share of samples with another nearer than 99 of 100 real rows have theirs; about 0.01 for
    good samples (the search of Arora and Zhang 2018, Do GANs learn the distribution?). ``class_distance``:
    total variation between classes of samples, each that of its nearest real row, and of real rows.
    """
    squares_NM = squared_distances(fake_ND, real_MD)
    covered = (squares_NM < neighbour_radii(real_MD, k)).any(0)
    recalled = (squares_NM < neighbour_radii(fake_ND, k)[:, None]).any(0)
    limit = neighbour_radii(real_MD, 1).quantile(0.01)
    copies = neighbour_radii(fake_ND, 1) < limit
    found = {
        "coverage": float(covered.double().mean()),
        "recall": float(recalled.double().mean()),
        "duplicates": float(copies.double().mean()),
    }
    if labels_M is not None:
        guessed_N = labels_M[squares_NM.argmin(1)]
        shares = [torch.bincount(y, minlength=classes) / len(y) for y in (guessed_N, labels_M)]
        found["class_distance"] = 0.5 * float((shares[0] - shares[1]).abs().sum())
        found["classes_made"] = float((shares[0] > 0).sum())
    return found


def _features(pixels_NCHW: Tensor) -> Tensor:
    """(N, D) float64 on the CPU."""
    height, width = pixels_NCHW.shape[2:]
    size = (min(_FEATURE_SIDE, height), min(_FEATURE_SIDE, width))
    return F.adaptive_avg_pool2d(pixels_NCHW.cpu().double(), size).flatten(1)


def collapse_problems(
    config: CollapseConfig, best_coverage: float, found: dict[str, float], nimg: int
) -> list[str]:
    """What a look speaks against samples, in words; nothing within the grace."""
    if nimg < config.start_nimg:
        return []
    told: list[str] = []
    coverage, duplicates = found["coverage"], found["duplicates"]
    least = max(config.least_coverage, config.least_of_best * best_coverage)
    if coverage < least:
        told.append(f"coverage {coverage:.3f}, at least {least:.3f} is wanted")
    if duplicates > config.most_duplicates:
        told.append(f"{duplicates:.0%} of samples are near copies of others")
    return told


def record_check(watch: MonitorState, config: CollapseConfig, told: list[str], nimg: int) -> bool:
    """Record the problems of one check. Returns whether they now count as a collapse."""
    watch.bad_checks = watch.bad_checks + 1 if told else 0
    if told:
        watch.events.append(f"at {nimg:,} images: {' and '.join(told)}")
    return watch.bad_checks >= config.patience


def record_rollback(watch: MonitorState, config: CollapseConfig, nimg: int) -> None:
    """Note that training goes on from the best weights, if it may.

    Raises:
        TrainingCollapsed: on all ranks alike, if it did so before, or there are no such weights.
    """
    if watch.retried >= config.retries or not watch.best:
        story = "; ".join(watch.events)
        why = "no retry is left" if watch.best else "no look had found weights to go back to"
        watch.events.append(f"at {nimg:,} images: training ended, {why}")
        raise TrainingCollapsed(
            f"training collapsed at {nimg:,} images, {watch.retried} retries before: {story}; {why}; "
            "raise the model's penalty (net.gamma), lower train.optim.lr, "
            "or show more data or augmentation (net.augment)"
        )
    watch.retried += 1
    watch.bad_checks = 0
    watch.lr_scale *= config.lr_factor
    watch.events.append(
        f"at {nimg:,} images: back to the averaged weights of {watch.best_nimg:,} images (coverage "
        f"{watch.best_coverage:.3f}), learning rates x {config.lr_factor:g}, "
        f"gamma x {config.penalty_factor:g}"
    )
