"""Monitors sample diversity against the data. On mode collapse, training rolls back to the best EMA weights.

Training that plays two nets against each other has no loss that measures progress. So samples of the EMA
weights are compared with real validation rows, in one simple feature space: images averaged down to at most
8x8. All ranks evaluate together and decide alike. Letters: N samples, M real rows, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genmod import units
from genmod.config import Config
from genmod.errors import TrainingCollapsed
from genmod.interface.batch import Batch
from genmod.interface.model import GenerativeModel
from genmod.interface.options import MAX_NIMG, SampleOptions
from genmod.metrics.neighbours import neighbour_radii, squared_distances, widened
from genmod.rng import rng_for
from genmod.world import World

_FEATURE_SIDE = 8
"""Images are averaged down to at most this height and width."""
_BATCH_ROWS = 64
"""Samples drawn together."""


class CollapseConfig(Config):
    """The recipe's ``train.collapse_monitor``: when to check samples, what is a collapse, what to do then.

    The defaults come from ten-minute runs on Fashion-MNIST (tests/benchmarks/_quality_gan.py; 256 rows):
    coverage 0.71 to 0.95 after 50,000 images and 0.95 to 0.98 at the end, never below 0.97 of the best
    before; duplicates at most 0.02, for real images 0.01. Samples that are 2, 8 or 32 images plus a little
    noise have coverage 0.05, 0.20 and 0.53, and duplicates 1.0 each. So coverage detects deep collapses,
    and only duplicates detect the one onto 32 images.
    """

    every_nimg: int = Field(default=20_000, gt=0, le=MAX_NIMG)
    """Images between checks."""
    rows: int = Field(default=256, ge=16, le=1_000_000)
    """Samples and validation rows to compare, at most."""
    neighbours: int = Field(default=5, gt=0, le=1_000)
    """The k of the nearest-neighbour balls in coverage and recall."""
    start_nimg: int = Field(default=40_000, ge=0, le=MAX_NIMG)
    """Images seen before a check may count as a collapse."""
    min_coverage: float = Field(default=0.1, ge=0, le=1)
    """Coverage below this is a collapse."""
    min_relative_coverage: float = Field(default=0.5, ge=0, le=1)
    """Coverage below this share of the best coverage so far is a collapse."""
    max_duplicates: float = Field(default=0.9, ge=0, le=1)
    """A larger share of near-duplicate samples is a collapse. Near 1, because healthy samples of data with
    little variety look like duplicates."""
    consecutive_checks: int = Field(default=2, gt=0, le=1_000)
    """Failed checks in a row before training rolls back."""
    lr_factor: float = Field(default=0.5, gt=0, le=1)
    """A rollback multiplies every learning rate by this."""
    penalty_factor: float = Field(default=4.0, ge=1, le=1e6)
    """A rollback strengthens the model's regularisation by this factor, if it has one."""
    max_rollbacks: int = Field(default=1, ge=0, le=1_000)
    """The next collapse after this many rollbacks ends training."""


_Count = Annotated[int, Field(ge=0, le=MAX_NIMG)]


class MonitorDocument(Config):
    """What a checkpoint contains of the monitors; the fields of :class:`MonitorState` without weights."""

    best_coverage: float = Field(ge=0, le=1)
    best_nimg: int = Field(ge=-1, le=MAX_NIMG)
    failed_checks: _Count
    rollbacks: _Count
    lr_scale: float = Field(ge=0, le=1)
    posterior_collapsed: bool
    events: tuple[Annotated[str, Field(max_length=20_000)], ...] = Field(max_length=1_000_000)


@dataclass
class MonitorState:
    """What the monitors have measured so far: part of the training state."""

    best_coverage: float = 0.0
    best_nimg: int = -1
    failed_checks: int = 0
    """Failed checks in a row, up to the newest one."""
    rollbacks: int = 0
    lr_scale: float = 1.0
    """Factor of every learning rate."""
    posterior_collapsed: bool = False
    """Whether the newest check of the latents failed."""
    events: list[str] = field(default_factory=list[str])
    """One sentence for each failed check, rollback and recovery."""
    best: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """EMA weights of the best check, on the CPU."""

    def as_json(self) -> dict[str, Any]:
        """All fields but the weights, as JSON values."""
        return {name: value for name, value in vars(self).items() if name != "best"}

    @classmethod
    def from_document(cls, document: MonitorDocument, best: dict[str, Tensor]) -> Self:
        """The inverse of :meth:`as_json`, with the weights."""
        values: dict[str, Any] = document.model_dump()
        values |= {"events": list(document.events), "best": best}
        return cls(**values)


@dataclass(frozen=True)
class CollapseMonitor:
    """Draws samples and compares them with validation rows."""

    config: CollapseConfig
    real: Batch
    """Validation rows, the same on every rank."""
    seed: int
    options: SampleOptions
    """The family's sampling options."""

    def evaluate(self, model: GenerativeModel, world: World) -> dict[str, float]:
        """:func:`sample_statistics` of samples with the labels of the real rows. Collective."""
        rows = min(self.config.rows, len(self.real))
        real = self.real.rows(slice(0, rows)).to(world.device)
        rng = rng_for(self.seed, "train/watch", range(rows), world.device)
        pixels_NCHW = torch.zeros(rows, *model.spec.shape, device=world.device)
        # Each rank draws its share of the samples.
        for number, first in enumerate(range(0, rows, _BATCH_ROWS)):
            if number % world.size == world.rank:
                part = slice(first, min(first + _BATCH_ROWS, rows))
                labels_B = None if real.labels_B is None else real.labels_B[part]
                x_BCHW = model.sample(labels_B, rng.rows(part), self.options)
                pixels_NCHW[part] = units.to_pixels(x_BCHW).float()
        # Where one rank has pixels the others have zeros, so the sum collects all samples.
        pixels_NCHW = (world.mean(pixels_NCHW) * world.size).round()
        fake_ND, real_MD = _features(pixels_NCHW), _features(real.pixels_BCHW)
        labels_M = None if real.labels_B is None else real.labels_B.cpu()
        return sample_statistics(
            fake_ND, real_MD, labels_M, model.spec.classes, self.config.neighbours
        )


def sample_statistics(
    fake_ND: Tensor, real_MD: Tensor, labels_M: Tensor | None, classes: int, k: int
) -> dict[str, float]:
    """Coverage, recall, duplicates, and with labels the distance between class histograms.

    ``coverage`` (Naeem et al. 2020) and ``recall`` (Kynkäänniemi et al. 2019) use closed balls of ``k``
    neighbours.
    ``duplicates``: share of samples with another one closer than 99 of 100 real rows have theirs; about
    0.01 for good samples (after the birthday test of Arora and Zhang 2018, Do GANs learn the
    distribution?).
    ``class_distance``: total variation between the class histograms of samples, each classified by its
    nearest real row, and of real rows. ``classes_made``: number of classes among the samples.
    """
    squares_NM = squared_distances(fake_ND, real_MD)
    covered = (squares_NM <= widened(neighbour_radii(real_MD, k), real_MD)).any(0)
    recalled = (squares_NM <= widened(neighbour_radii(fake_ND, k), real_MD)[:, None]).any(0)
    # Where real rows repeat, the limit is 0, and copies among samples are no defect.
    limit = neighbour_radii(real_MD, 1).quantile(0.01)
    copies = widened(neighbour_radii(fake_ND, 1), real_MD) < limit
    statistics = {
        "coverage": float(covered.double().mean()),
        "recall": float(recalled.double().mean()),
        "duplicates": float(copies.double().mean()),
    }
    if labels_M is not None:
        predicted_N = labels_M[squares_NM.argmin(1)]
        shares = [torch.bincount(y, minlength=classes) / len(y) for y in (predicted_N, labels_M)]
        statistics["class_distance"] = 0.5 * float((shares[0] - shares[1]).abs().sum())
        statistics["classes_made"] = float((shares[0] > 0).sum())
    return statistics


def _features(pixels_NCHW: Tensor) -> Tensor:
    """Downsampled pixels, (N, D) float64 on the CPU."""
    height, width = pixels_NCHW.shape[2:]
    size = (min(_FEATURE_SIDE, height), min(_FEATURE_SIDE, width))
    return F.adaptive_avg_pool2d(pixels_NCHW.cpu().double(), size).flatten(1)


def collapse_problems(
    config: CollapseConfig, best_coverage: float, statistics: dict[str, float], nimg: int
) -> list[str]:
    """Why samples count as collapsed, one phrase each; empty before ``start_nimg``."""
    if nimg < config.start_nimg:
        return []
    problems: list[str] = []
    coverage, duplicates = statistics["coverage"], statistics["duplicates"]
    least = max(config.min_coverage, config.min_relative_coverage * best_coverage)
    if coverage < least:
        problems.append(f"coverage {coverage:.3f}, expected at least {least:.3f}")
    if duplicates > config.max_duplicates:
        problems.append(f"{duplicates:.0%} of samples are near-duplicates of others")
    return problems


def record_check(
    monitors: MonitorState, config: CollapseConfig, problems: list[str], nimg: int
) -> bool:
    """Record one check and its problems. Returns whether training must roll back."""
    monitors.failed_checks = monitors.failed_checks + 1 if problems else 0
    if problems:
        monitors.events.append(f"at {nimg:,} images: {' and '.join(problems)}")
    return monitors.failed_checks >= config.consecutive_checks


def record_rollback(monitors: MonitorState, config: CollapseConfig, nimg: int, hint: str) -> None:
    """Record that training continues from the best EMA weights, if it may.

    Args:
        monitors: changed in place.
        config: when to give up, and the factors of a rollback.
        nimg: images seen.
        hint: the family's advice, for the error.

    Raises:
        TrainingCollapsed: on all ranks alike, if no rollback is left or there are no such weights.
    """
    if monitors.rollbacks >= config.max_rollbacks or not monitors.best:
        story = "; ".join(monitors.events)
        reason = "no rollback is left" if monitors.best else "no check has found good weights yet"
        monitors.events.append(f"at {nimg:,} images: training ended, {reason}")
        raise TrainingCollapsed(
            f"training collapsed at {nimg:,} images after {monitors.rollbacks} rollbacks: {story}; {reason}; "
            f"{hint}"
        )
    monitors.rollbacks += 1
    monitors.failed_checks = 0
    monitors.lr_scale *= config.lr_factor
    monitors.events.append(
        f"at {nimg:,} images: rolled back to the EMA weights of {monitors.best_nimg:,} images (coverage "
        f"{monitors.best_coverage:.3f}), learning rates x {config.lr_factor:g}, "
        f"penalty x {config.penalty_factor:g}"
    )
