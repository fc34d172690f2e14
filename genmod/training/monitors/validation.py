"""Periodic evaluation during training: losses on fixed rows with fixed noise, and a grid of samples.

The work is divided over all ranks, so it is collective; its results do not depend on their number.
Letters: B batch, C channels, H height, W width, N images, P parts, K quantities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genmod import units
from genmod.data.format.image_grid import grid, png
from genmod.errors import TrainingDiverged
from genmod.interface.batch import Batch
from genmod.interface.model import GenerativeModel
from genmod.interface.options import SampleOptions
from genmod.rng import Rng, rng_for
from genmod.training.precision import autocast
from genmod.training.state import stack_scalars
from genmod.world import World

_BATCH_ROWS = 64
"""Rows that are computed together."""


@dataclass(frozen=True)
class Validation:
    """Losses on fixed rows of the ``val`` split."""

    rows: Batch
    """The same on every rank; ``index_B`` is the index in the split."""
    seed: int
    precision: str

    def evaluate(
        self, model: GenerativeModel, nimg: int, terms: Mapping[str, Sequence[str]], world: World
    ) -> dict[str, float]:
        """Each phase's loss and terms, averaged over the rows. Collective.

        Args:
            model: usually the EMA weights.
            nimg: images seen, the clock of the losses' schedules.
            terms: phase -> names of the quantities that its loss returns.
            world: the processes that share the rows.

        Returns:
            ``phase/quantity`` -> mean over the rows.

        Raises:
            TrainingDiverged: on all ranks alike, if a value is not finite.
        """
        parts = _parts(len(self.rows))
        keys = [f"{phase}/{term}" for phase, names in terms.items() for term in names]
        values_PK = torch.zeros(len(parts), len(keys), dtype=torch.float64, device=world.device)
        for number, part in enumerate(parts):
            if number % world.size == world.rank:
                batch = self.rows.rows(part).to(world.device)
                values_PK[number] = self._losses(model, batch, nimg, terms)
        values_PK = world.mean(values_PK) * world.size  # the sum; all ranks but one have zeros
        weights_P = torch.tensor([p.stop - p.start for p in parts], dtype=torch.float64)
        means_K = (values_PK.cpu() * weights_P[:, None]).sum(0) / weights_P.sum()
        losses = dict(zip(keys, means_K.tolist(), strict=True))
        if bad := [key for key, value in losses.items() if not math.isfinite(value)]:
            raise TrainingDiverged(
                f"training diverged: {bad[0]} of the EMA weights is not finite on the validation rows at "
                f"{nimg:,} images"
            )
        return losses

    def _losses(
        self, model: GenerativeModel, batch: Batch, nimg: int, terms: Mapping[str, Sequence[str]]
    ) -> Tensor:
        """The quantities of one part, (K,)."""
        values: list[Tensor] = []
        for phase, names in terms.items():
            rng = Rng(self.seed, f"validate/{phase}", batch.index_B)
            with autocast(self.precision, batch.index_B.device):
                losses = model.loss(phase, batch, rng, nimg)
            values += [losses.total if name == "loss" else losses.terms[name] for name in names]
        return stack_scalars(values)


@dataclass(frozen=True)
class SampleGrid:
    """An image of samples, each from the same noise every time; with labels, one class a column."""

    images: int
    seed: int
    options: SampleOptions
    scale: int = 2

    def draw(self, model: GenerativeModel, world: World) -> bytes:
        """A PNG file, the same on every rank. Collective."""
        spec = model.spec
        rng = rng_for(self.seed, "train/grid", range(self.images), world.device)
        labels_N = rng.index_B % spec.classes if spec.classes else None
        pixels_NCHW = torch.zeros(self.images, *spec.shape, device=world.device)
        for number, part in enumerate(_parts(self.images, -(-self.images // world.size))):
            if number == world.rank:
                labels_B = None if labels_N is None else labels_N[part]
                x_BCHW = model.sample(labels_B, rng.rows(part), self.options)
                pixels_NCHW[part] = units.to_pixels(x_BCHW).float()
        pixels_NCHW = (world.mean(pixels_NCHW) * world.size).round().to(torch.uint8).cpu()
        columns = min(spec.classes if 2 <= spec.classes <= 20 else 10, self.images)
        return png(grid(pixels_NCHW, columns, self.scale))


def _parts(rows: int, size: int = _BATCH_ROWS) -> list[slice]:
    """Consecutive slices of at most ``size`` rows.

    >>> _parts(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]
