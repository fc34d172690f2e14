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
"""Where an epoch ends inside a batch: fill up from the next epoch, or leave out what does not fill one."""


class RowOrder(Protocol):
    """The rows of a training stream by position."""

    def rows_at(self, position_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows at positions of the stream, at least 0. Cheapest for thousands at a time."""
        ...


def epoch_rows(rows: int, global_batch: int, last: LastBatch) -> int:
    """Positions of an epoch of ``rows`` rows.

    Raises:
        ConfigError: every row would be left out.
    """
    if last == "wrap":
        return rows
    if rows < global_batch:
        raise ConfigError(
            f"train.order.last_batch is drop, but the train split's {rows} rows do not fill one batch of "
            f"{global_batch}; make the batch smaller, or train.order.last_batch=wrap"
        )
    return rows - rows % global_batch


@dataclass(frozen=True)
class UniformOrder:
    """Uniform: any row may be next to any other."""

    rows: int
    """Of the split."""
    seed: int
    purpose: str = "order"
    """Two streams with the same seed need two."""
    epoch: int | None = None
    """Positions of an epoch; as many as rows if not given. What is left out is other rows each time."""

    @classmethod
    def of(cls, manifest: DatasetManifest, split: Split, seed: int) -> UniformOrder:
        """The order of a dataset's split. ConfigError if the split is empty."""
        rows = manifest.rows(split)
        if rows == 0:
            raise ConfigError(
                f"the dataset's {split} split is empty; see data.splits in the recipe"
            )
        return cls(rows, seed)

    def rows_at(self, position_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the split, 0 .. rows-1, at positions of the stream."""
        at_N = torch.from_numpy(position_N.copy())
        length = self.epoch or self.rows
        epoch_N = at_N // length
        within_N = at_N - epoch_N * length
        return shuffle(within_N, self.rows, self.seed, self.purpose, epoch_N).numpy()


@dataclass(frozen=True)
class _Layout:
    """One epoch of a :class:`WindowOrder`."""

    shard_S: NDArray[np.int64]
    """Number of the shard at each place."""
    first_S: NDArray[np.int64]
    """Position in the epoch where the shard at each place would begin, were its window not shuffled."""
    window_W: NDArray[np.int64]
    """The same of each window, and the end."""


class WindowOrder:
    """Uniform over windows of ``window`` shards that change with the epoch; few shards are read at a time.

    The shards of an epoch come in a uniform order, ``window`` of them make a window, and the rows of a window
    are shuffled uniformly. So a shard's rows all lie in one stretch of positions, no longer than a window.
    Two rows of one shard are never further apart than that: shards that are alike inside (sorted by class,
    say) want a large window, or none. Memory is O(shards).
    """

    def __init__(
        self,
        rows_S: Sequence[int],
        window: int,
        seed: int,
        purpose: str = "order",
        epoch: int | None = None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            rows_S: of each shard.
            window: shards, at least 1.
            seed: of the run.
            purpose: two streams with the same seed need two.
            epoch: positions of an epoch; as many as rows if not given.
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
        """Rows of the split, 0 .. rows-1. Cheapest for consecutive positions."""
        epoch_N = position_N // self.epoch
        within_N = position_N - epoch_N * self.epoch
        row_N = np.empty_like(position_N)
        for epoch in np.unique(epoch_N).tolist():
            here_N = np.flatnonzero(epoch_N == epoch)
            row_N[here_N] = self._rows_of_epoch(epoch, within_N[here_N])
        return row_N

    def _rows_of_epoch(self, epoch: int, within_N: NDArray[np.int64]) -> NDArray[np.int64]:
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
        place_N = begin_N + shuffled_N.numpy()
        slot_N = np.searchsorted(layout.first_S, place_N, side="right") - 1
        return self.start_S[layout.shard_S[slot_N]] + place_N - layout.first_S[slot_N]

    def _layout(self, epoch: int) -> _Layout:
        if epoch not in self._layouts:
            place_S = torch.arange(len(self.rows_S))
            which_S = torch.full_like(place_S, epoch)
            purpose = f"{self.purpose}/shards"
            shard_S = shuffle(place_S, len(place_S), self.seed, purpose, which_S).numpy()
            first_S = np.cumsum(self.rows_S[shard_S]) - self.rows_S[shard_S]
            window_W = np.append(first_S[:: self.window], self.rows)
            self._layouts[epoch] = _Layout(shard_S, first_S, window_W)
            if len(self._layouts) > 2:  # a batch lies in two epochs at most, unless they are tiny
                self._layouts.popitem(last=False)
        return self._layouts[epoch]


@dataclass(frozen=True)
class RankSlice:
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
