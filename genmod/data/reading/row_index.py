"""Where the rows of some shards lie in their tars: read as it is asked for, in bounded memory.

What has been read is kept in one ring of fixed length, oldest shard out first, so opening a dataset costs
nothing per row, and finding rows is a few vectorised look-ups whatever the number of shards.
Letters: N rows, S shards.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from genmod import storage
from genmod.data.format.shards import read_table
from genmod.data.format.tar import BLOCK
from genmod.errors import DataError
from genmod.manifest import ImageSpec, ShardEntry

CACHE_ROWS = 1 << 24
"""Rows whose place is kept in memory, at 20 bytes each. A uniform order over more of them reads the indexes
again and again: it wants windows (``train.order.shuffle_window_shards``)."""

_PLACE = np.dtype(
    [("block", "u4"), ("bytes", "u4"), ("checksum", "u4"), ("label", "i4"), ("index", "u4")]
)
_COLUMNS = ("index", "offset", "bytes", "checksum", "label")
_MOST = 1 << 32

logger = logging.getLogger(__name__)


class Places(NamedTuple):
    """Some rows, in the order asked for."""

    shard_N: NDArray[np.int64]
    """Number of the shard."""
    offset_N: NDArray[np.int64]
    """Of the image in its tar."""
    length_N: NDArray[np.uint32]
    """Of the image, in bytes."""
    checksum_N: NDArray[np.uint32]
    """CRC-32 of those bytes."""
    label_N: NDArray[np.int32]
    """-1 where there is none."""
    index_N: NDArray[np.int64]
    """Unique in the split."""

    def some(self, which_N: NDArray[np.bool_]) -> Places:
        """Those of the rows."""
        return Places(
            self.shard_N[which_N],
            self.offset_N[which_N],
            self.length_N[which_N],
            self.checksum_N[which_N],
            self.label_N[which_N],
            self.index_N[which_N],
        )


class RowIndex:
    """The index of some shards as one list of rows, numbered from 0 in the shards' order."""

    def __init__(self, root: str, spec: ImageSpec, shards: Sequence[ShardEntry]) -> None:
        """Reads nothing yet."""
        self._root, self._spec, self._shards = root, spec, shards
        rows_S = np.fromiter((shard.rows for shard in shards), np.int64, len(shards))
        self.end_S = np.cumsum(rows_S)
        self.start_S = self.end_S - rows_S
        self.rows = int(rows_S.sum())
        capacity = min(self.rows, max(CACHE_ROWS, int(rows_S.max(initial=0))))
        self._ring = np.empty(capacity, dtype=_PLACE)
        self._head = 0
        self._base_S = np.full(len(shards), -1, dtype=np.int64)
        self._first_index_S = np.zeros(len(shards), dtype=np.int64)
        self._held: deque[int] = deque()
        self._read_rows, self._found_rows, self._told = 0, 0, False

    def url(self, number: int) -> str:
        """Of a shard's index."""
        return storage.join(self._root, self._shards[number].index.path)

    def shard_of(self, row_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the shard that each row is in."""
        return np.searchsorted(self.end_S, row_N, side="right")

    def find(self, row_N: NDArray[np.int64]) -> Places:
        """Where rows are.

        Raises:
            DataError: an index is missing, or does not fit the manifest or the dataset.
        """
        shard_N = self.shard_of(row_N)
        place_N = self._places(row_N, shard_N)
        self._found_rows += len(row_N)
        return Places(
            shard_N,
            place_N["block"].astype(np.int64) * BLOCK,
            place_N["bytes"],
            place_N["checksum"],
            place_N["label"],
            place_N["index"] + self._first_index_S[shard_N],
        )

    def keys(self, number: int) -> list[str]:
        """The keys of a shard's rows."""
        url = self.url(number)
        return cast(list[str], read_table(_read(url), url, ["key"])["key"].to_pylist())

    def _places(self, row_N: NDArray[np.int64], shard_N: NDArray[np.int64]) -> NDArray[np.void]:
        base_N = self._base_S[shard_N]
        if base_N.min(initial=0) < 0:
            for number in np.unique(shard_N[base_N < 0]).tolist():
                self._load(number)
            base_N = self._base_S[shard_N]
            if base_N.min() < 0:  # more shards than the ring holds at a time
                half = len(row_N) // 2
                parts = slice(0, half), slice(half, None)
                return np.concatenate([self._places(row_N[p], shard_N[p]) for p in parts])
        return self._ring[base_N + row_N - self.start_S[shard_N]]

    def _load(self, number: int) -> None:
        rows = self._shards[number].rows
        if self._head + rows > len(self._ring):
            self._drop(self._head, len(self._ring))
            self._head = 0
        begin, end = self._head, self._head + rows
        self._drop(begin, end)
        self._ring[begin:end] = self._read(number)
        self._held.append(number)
        self._base_S[number], self._head = begin, end
        self._tell(rows)

    def _drop(self, begin: int, end: int) -> None:
        """Let shards go that lie in a stretch of the ring; the oldest lie there first."""
        while self._held:
            number = self._held[0]
            base = int(self._base_S[number])
            if base >= end or begin >= base + self._shards[number].rows:
                return
            self._base_S[self._held.popleft()] = -1

    def _tell(self, rows: int) -> None:
        """Say once that indexes are read in vain."""
        self._read_rows += rows
        if not self._told and self._read_rows > 2 * self.rows + 10 * self._found_rows:
            self._told = True
            logger.warning(
                "%s: its rows are asked for in an order that reads the indexes of %d shards again and "
                "again; set train.order.shuffle_window_shards",
                self._root,
                len(self._shards),
            )

    def _read(self, number: int) -> NDArray[np.void]:
        """The index of a shard, as far as it is needed here."""
        shard, url = self._shards[number], self.url(number)
        table = read_table(_read(url), url, _COLUMNS)
        if table.num_rows != shard.rows or not shard.rows:
            raise DataError(f"{url}: {table.num_rows} rows, the manifest says {shard.rows}")
        offset_N, length_N = table["offset"].to_numpy(), table["bytes"].to_numpy()
        room_N = shard.tar.size_bytes - offset_N
        if np.any((offset_N < 0) | (offset_N % BLOCK != 0) | (length_N < 0) | (length_N > room_N)):
            raise DataError(f"{url}: points outside its tar")
        label_N, classes = table["label"].fill_null(-1).to_numpy(), self._spec.classes
        if np.any(label_N >= classes) or (classes and np.any(label_N < 0)):
            raise DataError(f"{url}: a label is not one of the dataset's {classes} classes")
        index_N = table["index"].to_numpy()
        first = int(index_N.min())
        largest = (length_N.max(), offset_N.max() // BLOCK, index_N.max() - first)
        if max(largest) >= _MOST:
            raise DataError(f"{url}: a number in it is above {_MOST}; make smaller shards")
        place_N = np.empty(shard.rows, dtype=_PLACE)
        self._first_index_S[number] = first
        place_N["block"], place_N["bytes"] = offset_N // BLOCK, length_N
        place_N["checksum"], place_N["label"] = table["checksum"].to_numpy(), label_N
        place_N["index"] = index_N - first
        return place_N


def _read(url: str) -> bytes:
    try:
        return storage.read_bytes(url)
    except FileNotFoundError:
        raise DataError(f"{url} is not there, but the dataset's manifest names it") from None
