"""What training looks at now and then: losses on fixed rows with fixed noise, and a picture of samples.

The work is dealt to all ranks, so all of them must come here together. What comes out does not depend on
how many they are. Letters: B batch, C channels, H height, W width, N images, P pieces, K quantities.
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
from genmod.training.step_metrics import HINT
from genmod.world import World

_BATCH_ROWS = 64
"""Rows that are computed together."""


@dataclass(frozen=True)
class Validation:
    """Losses on fixed rows."""

    rows: Batch
    """The same on every rank; ``index_B`` is the index in the split."""
    seed: int
    precision: str

    def measure(
        self, model: GenerativeModel, nimg: int, terms: Mapping[str, Sequence[str]], world: World
    ) -> dict[str, float]:
        """Every phase's loss and terms, averaged over the rows.

        Args:
            model: usually the averaged weights.
            nimg: the clock that the losses' schedules go by.
            terms: for each phase the quantities that its loss gives.
            world: all its ranks are here.

        Raises:
            TrainingDiverged: on all ranks alike, if a loss is not finite.
        """
        pieces = _pieces(len(self.rows))
        keys = [f"{phase}/{term}" for phase, names in terms.items() for term in names]
        values_PK = torch.zeros(len(pieces), len(keys), dtype=torch.float64, device=world.device)
        for number, piece in enumerate(pieces):
            if number % world.size == world.rank:
                batch = self.rows.rows(piece).to(world.device)
                values_PK[number] = self._piece(model, batch, nimg, terms)
        values_PK = world.mean(values_PK) * world.size  # the sum; all but one are zero
        weights_P = torch.tensor([p.stop - p.start for p in pieces], dtype=torch.float64)
        means_K = (values_PK.cpu() * weights_P[:, None]).sum(0) / weights_P.sum()
        found = dict(zip(keys, means_K.tolist(), strict=True))
        if bad := [key for key, value in found.items() if not math.isfinite(value)]:
            raise TrainingDiverged(
                f"the averaged weights give no finite {bad[0]} on the validation rows at {nimg:,} images; "
                f"{HINT}"
            )
        return found

    def _piece(
        self, model: GenerativeModel, batch: Batch, nimg: int, terms: Mapping[str, Sequence[str]]
    ) -> Tensor:
        found: list[Tensor] = []
        for phase, names in terms.items():
            rng = Rng(self.seed, f"validate/{phase}", batch.index_B)
            with autocast(self.precision, batch.index_B.device):
                losses = model.loss(phase, batch, rng, nimg)
            found += [losses.total if name == "loss" else losses.terms[name] for name in names]
        return stack_scalars(found)


@dataclass(frozen=True)
class SampleGrid:
    """A picture of samples, each from the same noise every time; a class a column where there are labels."""

    images: int
    seed: int
    options: SampleOptions
    scale: int = 2

    def draw(self, model: GenerativeModel, world: World) -> bytes:
        """A PNG file, the same on every rank."""
        spec = model.spec
        rng = rng_for(self.seed, "train/grid", range(self.images), world.device)
        labels_N = rng.index_B % spec.classes if spec.classes else None
        pixels_NCHW = torch.zeros(self.images, *spec.shape, device=world.device)
        for number, piece in enumerate(_pieces(self.images, -(-self.images // world.size))):
            if number == world.rank:
                labels_B = None if labels_N is None else labels_N[piece]
                x_BCHW = model.sample(labels_B, rng.rows(piece), self.options)
                pixels_NCHW[piece] = units.to_pixels(x_BCHW).float()
        pixels_NCHW = (world.mean(pixels_NCHW) * world.size).round().to(torch.uint8).cpu()
        columns = min(spec.classes if 2 <= spec.classes <= 20 else 10, self.images)
        return png(grid(pixels_NCHW, columns, self.scale))


def _pieces(rows: int, size: int = _BATCH_ROWS) -> list[slice]:
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]
