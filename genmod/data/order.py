"""Which sample comes when: a pure function of (manifest, split, seed, position). Nothing is stored.

The training stream is endless. Global position p is epoch ``p // n``, and within an epoch every row of the
split comes once, in an order of that epoch's own. Ranks are dealt rows by global position, so their number
may change at any position. Letters: N numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from genmod import rng
from genmod.errors import ConfigError
from genmod.manifest import DatasetManifest, Split


@dataclass(frozen=True)
class Order:
    """The order of a training stream."""

    rows: int
    """Of the split."""
    seed: int

    @classmethod
    def of(cls, manifest: DatasetManifest, split: Split, seed: int) -> Order:
        """The order of a dataset's split. ConfigError if the split is empty."""
        rows = manifest.rows(split)
        if rows == 0:
            raise ConfigError(
                f"the dataset's {split} split is empty; see data.splits in the recipe"
            )
        return cls(rows, seed)

    def rows_at(self, position_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the split, 0 .. rows-1, at positions of the stream. Cheapest for thousands at a time."""
        at_N = torch.from_numpy(position_N.copy())
        epoch_N = at_N // self.rows
        within_N = at_N - epoch_N * self.rows
        return rng.shuffle(within_N, self.rows, self.seed, "order", epoch_N).numpy()


@dataclass(frozen=True)
class Deal:
    """Which positions of the stream a rank takes: of global batch [p, p + B), its r-th part."""

    global_batch: int
    rank: int
    size: int

    def __post_init__(self) -> None:
        if self.global_batch % self.size:
            raise ConfigError(
                f"a global batch of {self.global_batch} images cannot be dealt to {self.size} workers "
                "in equal parts; make it a multiple"
            )
        assert 0 <= self.rank < self.size

    @property
    def local_batch(self) -> int:
        """Rows of a global batch that are this rank's."""
        return self.global_batch // self.size

    def positions(self, start: int, batches: int) -> NDArray[np.int64]:
        """This rank's positions, (batches, local_batch), of the batches from stream position ``start``."""
        first = start + self.rank * self.local_batch
        batch_N = np.arange(batches, dtype=np.int64) * self.global_batch
        return first + batch_N[:, None] + np.arange(self.local_batch, dtype=np.int64)
