"""Row order of the training stream: a pure function of (manifest, split, seed, position).

The stream is endless and stateless: global position p determines its row, so three integers (seed, position,
global batch) resume it anywhere at constant cost. An epoch contains every row once, in a new order. Ranks
receive rows by global position, so the number of ranks may change at any position.

:class:`UniformOrder` is a keyed permutation of 16 rounds; statistical tests find no position that prefers a
row and no pair of positions that prefers a pair of rows. :class:`WindowOrder` is uniform within windows of a
few shards, so that only a few shards are read at a time. Letters: N numbers, S shards, W windows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from genmod.errors import ConfigError
from genmod.manifest import DatasetManifest, Split
from genmod.permutation import shuffle

LastBatch = Literal["wrap", "drop"]
"""Incomplete last batch of an epoch: fill it from the next epoch, or drop it."""


class RowOrder(Protocol):
    """Order of the rows of a training stream, by position."""

    def rows_at(self, position_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows at stream positions of at least 0. Most efficient for thousands of positions per call."""
        ...


def epoch_rows(rows: int, global_batch: int, last: LastBatch) -> int:
    """Number of positions of an epoch of ``rows`` rows.

    >>> epoch_rows(10, global_batch=4, last="drop")
    8

    Raises:
        ConfigError: ``last`` is drop and the rows do not fill one batch.
    """
    if last == "wrap":
        return rows
    if rows < global_batch:
        raise ConfigError(
            f"train.order.last_batch is drop, but the train split's {rows} rows do not fill one batch of "
            f"{global_batch}; reduce the batch, or set train.order.last_batch=wrap"
        )
    return rows - rows % global_batch


@dataclass(frozen=True)
class UniformOrder:
    """A uniform permutation of all rows in each epoch."""

    rows: int
    """Number of rows of the split."""
    seed: int
    purpose: str = "order"
    """Distinguishes streams with the same seed."""
    epoch: int | None = None
    """Positions of an epoch, by default one per row. With fewer, each epoch leaves out other rows."""

    @classmethod
    def of(cls, manifest: DatasetManifest, split: Split, seed: int) -> UniformOrder:
        """Create the order of a dataset's split. Raises ConfigError if the split is empty."""
        rows = manifest.rows(split)
        if rows == 0:
            raise ConfigError(
                f"the dataset's {split} split is empty; see data.splits in the recipe"
            )
        return cls(rows, seed)

    def rows_at(self, position_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the split, 0 .. rows-1, at stream positions."""
        stream_N = torch.from_numpy(position_N.copy())
        length = self.epoch or self.rows
        epoch_N = stream_N // length
        within_N = stream_N - epoch_N * length
        return shuffle(within_N, self.rows, self.seed, self.purpose, epoch_N).numpy()


@dataclass(frozen=True)
class _Layout:
    """Shards and windows of one epoch of a :class:`WindowOrder`."""

    shard_S: NDArray[np.int64]
    """Shard numbers in the order of the epoch."""
    first_S: NDArray[np.int64]
    """First position of each of these shards, before the windows are shuffled."""
    window_W: NDArray[np.int64]
    """First position of each window, and the end of the epoch."""


class WindowOrder:
    """Uniform within windows of ``window`` shards, so that only a few shards are read at a time.

    In each epoch the shards are shuffled uniformly, consecutive groups of ``window`` shards form windows, and
    the rows of a window are shuffled uniformly. So all rows of a shard are within one window. Shards with
    similar rows (e.g. sorted by class) need a large window, or none. Memory is O(shards).
    """

    def __init__(
        self,
        rows_S: Sequence[int],
        window: int,
        seed: int,
        purpose: str = "order",
        epoch: int | None = None,
    ) -> None:
        """Prepare the order; nothing is computed yet.

        Args:
            rows_S: number of rows of each shard.
            window: number of shards of a window, at least 1.
            seed: seed of the run.
            purpose: distinguishes streams with the same seed.
            epoch: positions of an epoch, by default one per row.
        """
        self.rows_S = np.asarray(rows_S, dtype=np.int64)
        self.start_S = np.cumsum(self.rows_S) - self.rows_S
        self.rows = int(self.rows_S.sum())
        self.window = window
        self.seed = seed
        self.purpose = purpose
        self.epoch = epoch or self.rows
        self._layouts: OrderedDict[int, _Layout] = OrderedDict()

    def rows_at(self, position_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the split, 0 .. rows-1, at stream positions. Most efficient for consecutive ones."""
        epoch_N = position_N // self.epoch
        within_N = position_N - epoch_N * self.epoch
        row_N = np.empty_like(position_N)
        for epoch in np.unique(epoch_N).tolist():
            here_N = np.flatnonzero(epoch_N == epoch)
            row_N[here_N] = self._rows_of_epoch(epoch, within_N[here_N])
        return row_N

    def _rows_of_epoch(self, epoch: int, within_N: NDArray[np.int64]) -> NDArray[np.int64]:
        # Shuffle the positions within their windows.
        layout = self._layout(epoch)
        window_N = np.searchsorted(layout.window_W, within_N, side="right") - 1
        begin_N, end_N = layout.window_W[window_N], layout.window_W[window_N + 1]
        shuffled_N = shuffle(
            torch.from_numpy(within_N - begin_N),
            torch.from_numpy(end_N - begin_N),
            self.seed,
            f"{self.purpose}/window",
            torch.from_numpy(window_N + epoch * len(self.rows_S)),
        )
        shuffled_N = begin_N + shuffled_N.numpy()
        # Find the shard at each shuffled position, and the row in it.
        slot_N = np.searchsorted(layout.first_S, shuffled_N, side="right") - 1
        return self.start_S[layout.shard_S[slot_N]] + shuffled_N - layout.first_S[slot_N]

    def _layout(self, epoch: int) -> _Layout:
        if epoch not in self._layouts:
            place_S = torch.arange(len(self.rows_S))
            which_S = torch.full_like(place_S, epoch)
            purpose = f"{self.purpose}/shards"
            shard_S = shuffle(place_S, len(place_S), self.seed, purpose, which_S).numpy()
            first_S = np.cumsum(self.rows_S[shard_S]) - self.rows_S[shard_S]
            window_W = np.append(first_S[:: self.window], self.rows)
            self._layouts[epoch] = _Layout(shard_S, first_S, window_W)
            if len(self._layouts) > 2:  # unless epochs are tiny, a batch overlaps at most two
                self._layouts.popitem(last=False)
        return self._layouts[epoch]


@dataclass(frozen=True)
class RankSlice:
    """Stream positions of one rank: the rank-th of ``size`` equal parts of each global batch."""

    global_batch: int
    rank: int
    size: int

    def __post_init__(self) -> None:
        if self.global_batch % self.size:
            raise ConfigError(
                f"a global batch of {self.global_batch} images cannot be divided equally among "
                f"{self.size} workers; make it a multiple of {self.size}"
            )
        assert 0 <= self.rank < self.size

    @property
    def local_batch(self) -> int:
        """Number of rows of this rank in a global batch."""
        return self.global_batch // self.size

    def positions(self, start: int, batches: int) -> NDArray[np.int64]:
        """This rank's positions, int64 (batches, local_batch), of batches from position ``start`` on."""
        first = start + self.rank * self.local_batch
        batch_N = np.arange(batches, dtype=np.int64) * self.global_batch
        return first + batch_N[:, None] + np.arange(self.local_batch, dtype=np.int64)
