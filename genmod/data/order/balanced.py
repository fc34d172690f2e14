"""Classes in equal shares, each with epochs of its own. Letters: N positions, S shards, K classes, R rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from genmod import storage
from genmod.data.format.shards import read_table
from genmod.errors import DataError
from genmod.manifest import ShardEntry
from genmod.permutation import shuffle

READERS = 16
"""Index files that are fetched at the same time."""

CACHE_ROWS = 1 << 22
"""Rows of shards whose labels are kept in memory, 4 bytes each."""

Labels = Callable[[int], NDArray[np.int32]]
"""The labels of a shard's rows by its number, -1 where there is none."""


def shard_labels(url_of: Callable[[str], str], shards: Sequence[ShardEntry]) -> Labels:
    """Reads the label column of shards' index files.

    Args:
        url_of: makes a URL of an entry's path.
        shards: in the order that their numbers count.
    """

    def labels(number: int) -> NDArray[np.int32]:
        shard = shards[number]
        url = url_of(shard.index.path)
        try:
            table = read_table(storage.read_bytes(url), url, ["label"])
        except FileNotFoundError:
            raise DataError(f"{url} is not there, but the dataset's manifest names it") from None
        if table.num_rows != shard.rows:
            raise DataError(f"{url}: {table.num_rows} rows, the manifest says {shard.rows}")
        return table["label"].fill_null(-1).to_numpy()

    return labels


class ClassIndex:
    """Finds the i-th row of a class. Holds 8 bytes for each class of each shard, and some shards' labels."""

    def __init__(self, rows_S: Sequence[int], classes: int, labels: Labels) -> None:
        """Reads all labels once, a shard at a time.

        Args:
            rows_S: of each shard.
            classes: K.
            labels: of a shard's rows; called from threads, and again when a shard's rows are looked up.

        Raises:
            DataError: a label is not a class.
        """
        self._labels = labels
        self._start_S = np.cumsum([0, *rows_S])[:-1]
        self._classes = classes
        self._held: OrderedDict[int, tuple[NDArray[np.int32], NDArray[np.int64]]] = OrderedDict()
        self._held_rows = 0
        with ThreadPoolExecutor(READERS) as pool:
            counts_SK = np.array(list(pool.map(self._counts, range(len(rows_S)))))
        self.rows_K: NDArray[np.int64] = counts_SK.sum(axis=0)
        """Of each class."""
        self._before_KS = np.ascontiguousarray((np.cumsum(counts_SK, axis=0) - counts_SK).T)

    def _counts(self, number: int) -> NDArray[np.int64]:
        label_R = self._labels(number)
        if np.any(label_R < 0) or np.any(label_R >= self._classes):
            raise DataError(
                f"a row of shard {number} has no label below {self._classes}, balancing needs one"
            )
        return np.bincount(label_R, minlength=self._classes)

    def rows(self, class_N: NDArray[np.int64], number_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of the split of the ``number``-th row of each class, in the shards' order."""
        shard_N = np.empty_like(class_N)
        within_N = np.empty_like(class_N)
        for k in np.unique(class_N).tolist():
            here_N = np.flatnonzero(class_N == k)
            before_S = self._before_KS[k]
            shard_N[here_N] = np.searchsorted(before_S, number_N[here_N], side="right") - 1
            within_N[here_N] = number_N[here_N] - before_S[shard_N[here_N]]
        row_N = np.empty_like(class_N)
        for number in np.unique(shard_N).tolist():
            here_N = np.flatnonzero(shard_N == number)
            by_class_R, first_K = self._by_class(number)
            row_N[here_N] = by_class_R[first_K[class_N[here_N]] + within_N[here_N]]
        return row_N + self._start_S[shard_N]

    def _by_class(self, number: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """A shard's rows class by class, and where each class begins among them."""
        found = self._held.get(number)
        if found is None:
            label_R = self._labels(number)
            by_class_R = np.argsort(label_R, kind="stable").astype(np.int32)
            counts_K = np.bincount(label_R, minlength=self._classes)
            found = by_class_R, np.cumsum(counts_K) - counts_K
            self._held[number] = found
            self._held_rows += len(by_class_R)
            while self._held_rows > CACHE_ROWS and len(self._held) > 1:
                self._held_rows -= len(self._held.popitem(last=False)[1][0])
        else:
            self._held.move_to_end(number)
        return found


class BalancedOrder:
    """Every K positions from a multiple of K on have each class once, in an order of their own.

    A class's rows come in a uniform order, all of them before one comes again, so rows of small classes come
    more often. The n-th row of a class stands at position n K or less than K after it.
    """

    def __init__(self, index: ClassIndex, seed: int, purpose: str = "order") -> None:
        """Nothing is computed yet.

        Args:
            index: of a split in which every class has rows.
            seed: of the run.
            purpose: two streams with the same seed need two.
        """
        assert index.rows_K.min() > 0
        self._index = index
        self._seed = seed
        self._purpose = purpose

    def rows_at(self, position_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the split at positions of the stream."""
        rows_K, classes = self._index.rows_K, len(self._index.rows_K)
        number_N = position_N // classes
        place_N = torch.from_numpy(position_N - number_N * classes)
        which_N = torch.from_numpy(number_N)
        purpose = f"{self._purpose}/classes"
        class_N = shuffle(place_N, classes, self._seed, purpose, which_N).numpy()
        size_N = rows_K[class_N]
        epoch_N = number_N // size_N
        within_N = shuffle(
            torch.from_numpy(number_N - epoch_N * size_N),
            torch.from_numpy(size_N),
            self._seed,
            f"{self._purpose}/class",
            torch.from_numpy(epoch_N * classes + class_N),
        )
        return self._index.rows(class_N, within_N.numpy())
