"""Class-balanced order: classes in equal shares, each with its own epochs.

Letters: N positions, S shards, K classes, R rows of a shard.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from genmod.budget import BUDGET
from genmod.data.format.index import read_index
from genmod.errors import DataError
from genmod.manifest import StoredShard
from genmod.permutation import shuffle
from genmod.tables import numbers

LABEL_CACHE_ROWS = 1 << 22
"""Rows of shards that are cached sorted by class, 4 bytes each."""

_READ_THREADS = 16
"""Index files to read in parallel."""

Labels = Callable[[int], NDArray[np.int32]]
"""Returns the labels of a shard's rows, given the shard's number; -1 for rows without a label."""


def shard_labels(shards: Sequence[StoredShard]) -> Labels:
    """Create a function that reads the labels of a shard, by its number in ``shards``, from its index."""
    return lambda number: numbers(read_index(shards[number], ["label"])["label"])


class ClassIndex:
    """Finds the i-th row of a class. Needs 8 bytes per class and shard, and a cache of shards' rows."""

    def __init__(self, rows_S: Sequence[int], classes: int, labels: Labels) -> None:
        """Count the rows of each class in each shard; reads all labels once.

        Args:
            rows_S: number of rows of each shard.
            classes: number of classes.
            labels: reads the labels of a shard; called from threads, and again for later look-ups.

        Raises:
            DataError: a label is not a class number.
        """
        self._labels = labels
        self._start_S = np.cumsum([0, *rows_S])[:-1]
        self._classes = classes
        self._cached: OrderedDict[int, tuple[NDArray[np.int32], NDArray[np.int64]]] = OrderedDict()
        self._cached_rows = 0
        BUDGET.check("balanced classes", array_bytes=16 * len(rows_S) * classes)
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            counts_SK = np.array(list(pool.map(self._counts, range(len(rows_S)))))
        self.rows_K: NDArray[np.int64] = counts_SK.sum(axis=0)
        """Number of rows of each class."""
        self._before_KS = np.ascontiguousarray((np.cumsum(counts_SK, axis=0) - counts_SK).T)

    def _counts(self, number: int) -> NDArray[np.int64]:
        label_R = self._labels(number)
        if np.any(label_R < 0) or np.any(label_R >= self._classes):
            raise DataError(
                f"shard {number}: a row has no label below {self._classes}, which balancing requires"
            )
        return np.bincount(label_R, minlength=self._classes)

    def rows(self, class_N: NDArray[np.int64], number_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Look up row numbers: for each n, row ``number_N[n]`` of class ``class_N[n]``, in shard order."""
        # Shard of each row, and the row's number within its class in that shard.
        shard_N = np.empty_like(class_N)
        within_N = np.empty_like(class_N)
        for k in np.unique(class_N).tolist():
            here_N = np.flatnonzero(class_N == k)
            before_S = self._before_KS[k]
            shard_N[here_N] = np.searchsorted(before_S, number_N[here_N], side="right") - 1
            within_N[here_N] = number_N[here_N] - before_S[shard_N[here_N]]
        # Row within the shard, from the shard's rows sorted by class.
        row_N = np.empty_like(class_N)
        for number in np.unique(shard_N).tolist():
            here_N = np.flatnonzero(shard_N == number)
            by_class_R, first_K = self._by_class(number)
            row_N[here_N] = by_class_R[first_K[class_N[here_N]] + within_N[here_N]]
        return row_N + self._start_S[shard_N]

    def _by_class(self, number: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """A shard's rows sorted by class, and the start of each class among them."""
        entry = self._cached.get(number)
        if entry is None:
            label_R = self._labels(number)
            by_class_R = np.argsort(label_R, kind="stable").astype(np.int32)
            counts_K = np.bincount(label_R, minlength=self._classes)
            entry = by_class_R, np.cumsum(counts_K) - counts_K
            self._cached[number] = entry
            self._cached_rows += len(by_class_R)
            # Evict the least recently used shards.
            while self._cached_rows > LABEL_CACHE_ROWS and len(self._cached) > 1:
                self._cached_rows -= len(self._cached.popitem(last=False)[1][0])
        else:
            self._cached.move_to_end(number)
        return entry


class BalancedOrder:
    """Every block of K positions contains each class that has rows once, in a shuffled order.

    Each class has its own epochs: a uniform order of its rows, each row once per epoch. So rows of small
    classes occur more often. The n-th row of a class is at a position in [n K, (n + 1) K).
    """

    def __init__(self, index: ClassIndex, seed: int, purpose: str = "order") -> None:
        """Prepare the order; nothing is computed yet.

        Args:
            index: index of a split with rows; K is the number of classes that have some.
            seed: seed of the run.
            purpose: distinguishes streams with the same seed.
        """
        self._classes_K = np.flatnonzero(index.rows_K)
        assert len(self._classes_K)
        self._index = index
        self._seed = seed
        self._purpose = purpose

    def rows_at(self, position_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the split at stream positions."""
        rows_K, classes = self._index.rows_K, len(self._classes_K)
        # Class at each position: a permutation of the classes per block.
        number_N = position_N // classes
        place_N = torch.from_numpy(position_N - number_N * classes)
        which_N = torch.from_numpy(number_N)
        purpose = f"{self._purpose}/classes"
        dealt_N = shuffle(place_N, classes, self._seed, purpose, which_N).numpy()
        class_N = self._classes_K[dealt_N]
        # Row of the class: a permutation of its rows per epoch of the class.
        size_N = rows_K[class_N]
        epoch_N = number_N // size_N
        within_N = shuffle(
            torch.from_numpy(number_N - epoch_N * size_N),
            torch.from_numpy(size_N),
            self._seed,
            f"{self._purpose}/class",
            torch.from_numpy(epoch_N * classes + dealt_N),
        )
        return self._index.rows(class_N, within_N.numpy())
