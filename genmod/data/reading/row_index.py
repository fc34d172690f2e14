"""Row locations: a lazy index from row number to the row's image in a tar, in bounded memory.

Shard indexes are read on first use and cached in one ring buffer of fixed length; the oldest shard is evicted
first. So opening a dataset has no cost per row, and a look-up is a few vectorised operations, independent of
the number of shards. Letters: N rows, S shards.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genmod.data.format.index import HINT, column_problems, read_index, read_keys
from genmod.data.format.tar import BLOCK
from genmod.errors import DataError
from genmod.manifest import ImageSpec, StoredShard
from genmod.tables import numbers

INDEX_CACHE_ROWS = 1 << 24
"""Rows whose location is cached, 20 bytes each. A uniform order over more rows reads the indexes again and
again; use a window then (``train.order.shuffle_window_shards``)."""

_LOCATION = np.dtype(
    [("block", "u4"), ("bytes", "u4"), ("checksum", "u4"), ("label", "i4"), ("index", "u4")]
)
_COLUMNS = ("index", "offset", "bytes", "checksum", "label")
_LIMIT = 1 << 32

logger = logging.getLogger(__name__)


class Locations(NamedTuple):
    """Index entries of rows, in the order of the request."""

    shard_N: NDArray[np.int64]
    """Number of the shard."""
    offset_N: NDArray[np.int64]
    """Offset of the image in its tar."""
    length_N: NDArray[np.uint32]
    """Size of the image in bytes."""
    checksum_N: NDArray[np.uint32]
    """CRC-32 of the image."""
    label_N: NDArray[np.int32]
    """Label; -1 without one."""
    index_N: NDArray[np.int64]
    """Index of the row in the split, unique."""

    def select(self, mask_N: NDArray[np.bool_]) -> Locations:
        """Keep the rows where the mask is true."""
        return Locations(
            self.shard_N[mask_N],
            self.offset_N[mask_N],
            self.length_N[mask_N],
            self.checksum_N[mask_N],
            self.label_N[mask_N],
            self.index_N[mask_N],
        )


class RowIndex:
    """Index of the rows of several shards, numbered from 0 in the order of the shards."""

    def __init__(self, spec: ImageSpec, shards: Sequence[StoredShard]) -> None:
        """Prepare for look-ups; no file is read yet."""
        self._spec, self._shards = spec, shards
        rows_S = np.fromiter((shard.rows for shard in shards), np.int64, len(shards))
        self.end_S = np.cumsum(rows_S)
        self.start_S = self.end_S - rows_S
        self.rows = int(rows_S.sum())
        capacity = min(self.rows, max(INDEX_CACHE_ROWS, int(rows_S.max(initial=0))))
        self._ring = np.empty(capacity, dtype=_LOCATION)
        self._head = 0  # next free slot of the ring
        self._base_S = np.full(len(shards), -1, dtype=np.int64)  # first slot; -1: not cached
        self._first_index_S = np.zeros(len(shards), dtype=np.int64)
        self._cached: deque[int] = deque()  # shards in the ring, oldest first
        self._loaded_rows, self._found_rows, self._has_warned = 0, 0, False

    def shard_of(self, row_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the shard that contains each row."""
        return np.searchsorted(self.end_S, row_N, side="right")

    def find(self, row_N: NDArray[np.int64]) -> Locations:
        """Look up the locations of rows.

        Raises:
            DataError: an index is missing, or inconsistent with the manifest or the spec.
        """
        shard_N = self.shard_of(row_N)
        location_N = self._locations(row_N, shard_N)
        self._found_rows += len(row_N)
        return Locations(
            shard_N,
            location_N["block"].astype(np.int64) * BLOCK,
            location_N["bytes"],
            location_N["checksum"],
            location_N["label"],
            location_N["index"] + self._first_index_S[shard_N],
        )

    def keys(self, number: int) -> list[str]:
        """Read the keys of a shard's rows."""
        return read_keys(self._shards[number])

    def _locations(self, row_N: NDArray[np.int64], shard_N: NDArray[np.int64]) -> NDArray[np.void]:
        base_N = self._base_S[shard_N]
        if base_N.min(initial=0) < 0:
            # Load the shards that are not cached.
            for number in np.unique(shard_N[base_N < 0]).tolist():
                self._load(number)
            base_N = self._base_S[shard_N]
            # More shards than fit into the ring at once: look the rows up in two halves.
            if base_N.min() < 0:
                half = len(row_N) // 2
                parts = slice(0, half), slice(half, None)
                return np.concatenate([self._locations(row_N[p], shard_N[p]) for p in parts])
        return self._ring[base_N + row_N - self.start_S[shard_N]]

    def _load(self, number: int) -> None:
        """Read a shard's index into the ring."""
        rows = self._shards[number].rows
        # A shard occupies consecutive slots: start over at the front if the end is too short.
        if self._head + rows > len(self._ring):
            self._evict(self._head, len(self._ring))
            self._head = 0
        begin, end = self._head, self._head + rows
        self._evict(begin, end)
        self._ring[begin:end] = self._read(number)
        self._cached.append(number)
        self._base_S[number], self._head = begin, end
        self._warn_once(rows)

    def _evict(self, begin: int, end: int) -> None:
        """Evict the shards in a range of slots; they are the oldest ones."""
        while self._cached:
            number = self._cached[0]
            base = int(self._base_S[number])
            if base >= end or begin >= base + self._shards[number].rows:
                return
            self._base_S[self._cached.popleft()] = -1

    def _warn_once(self, rows: int) -> None:
        """Warn if far more index rows are loaded than looked up: the cache is thrashing."""
        self._loaded_rows += rows
        if not self._has_warned and self._loaded_rows > 2 * self.rows + 10 * self._found_rows:
            self._has_warned = True
            logger.warning(
                "%s: the row order reads the indexes of %d shards again and again; "
                "set train.order.shuffle_window_shards",
                self._shards[0].folder,
                len(self._shards),
            )

    def _read(self, number: int) -> NDArray[np.void]:
        """Read and check the index of a shard."""
        shard = self._shards[number]
        table = read_index(shard, _COLUMNS)
        for problem in column_problems(table, shard.entry.tar.size_bytes, self._spec):
            raise DataError(f"{shard.index_url}: {problem}; {HINT}")
        # Numbers fit into 32 bits; the index is stored relative to the shard's first.
        offset_N, length_N = numbers(table["offset"]), numbers(table["bytes"])
        index_N = numbers(table["index"])
        first = int(index_N.min())
        largest = (length_N.max(), offset_N.max() // BLOCK, index_N.max() - first)
        if max(largest) >= _LIMIT:
            raise DataError(
                f"{shard.index_url}: contains a number of {_LIMIT} or more; write smaller shards"
            )
        location_N = np.empty(shard.rows, dtype=_LOCATION)
        self._first_index_S[number] = first
        location_N["block"], location_N["bytes"] = offset_N // BLOCK, length_N
        location_N["checksum"] = numbers(table["checksum"])
        location_N["label"] = numbers(table["label"])
        location_N["index"] = index_N - first
        return location_N
