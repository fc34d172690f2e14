"""Bytes in buckets, on disk: what a plan of millions of rows holds instead of lists."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MEMORY_BYTES = 16 << 20
"""What is less stays in memory."""


class DiskBuckets:
    """Pieces by bucket, in the order in which they were added.

    They lie in a temporary file without a name (in ``TMPDIR``), of which nothing is left when the process
    ends, however it ends.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115
        self._extents: dict[int, list[tuple[int, int]]] = {}
        self._end = 0

    def add(self, bucket: int, piece: bytes) -> None:
        """Append to a bucket."""
        self._file.seek(self._end)
        self._file.write(piece)
        self._extents.setdefault(bucket, []).append((self._end, len(piece)))
        self._end += len(piece)

    def read(self, bucket: int) -> list[bytes]:
        """The pieces of a bucket."""
        pieces: list[bytes] = []
        for start, length in self._extents.get(bucket, ()):
            self._file.seek(start)
            pieces.append(self._file.read(length))
        return pieces

    def __len__(self) -> int:
        return len(self._extents)


class RowLine(NamedTuple):
    """A row as it lies in the spill."""

    name: str
    ref: Any
    label: int
    """Of the catalogue's own numbering where classes have names."""


class Groups:
    """Lines of rows by group; the group that was read last is kept."""

    def __init__(self) -> None:
        self._spill = DiskBuckets()
        self._kept: tuple[int, list[bytes]] = (-1, [])

    def add(self, group: int, slot_M: NDArray[np.int64], lines: Sequence[bytes]) -> None:
        """Append rows: their slots, then their lines."""
        head = len(lines).to_bytes(8, "little")
        self._spill.add(group, head + slot_M.astype("<i8").tobytes() + b"\n".join(lines))

    def rows(self, group: int, first: int, count: int) -> list[RowLine]:
        """Rows of a group in the order of their slots, from the ``first``."""
        if self._kept[0] != group:
            slots: list[NDArray[np.int64]] = []
            lines: list[bytes] = []
            for piece in self._spill.read(group):
                end = 8 + 8 * int.from_bytes(piece[:8], "little")
                slots.append(np.frombuffer(piece[8:end], dtype="<i8"))
                lines += piece[end:].split(b"\n")
            order = np.argsort(np.concatenate(slots), kind="stable").tolist()
            self._kept = group, [lines[at] for at in order]
        return [parse_line(line) for line in self._kept[1][first : first + count]]


def parse_line(line: bytes) -> RowLine:
    """A line of a spill."""
    return RowLine(*json.loads(line))


def group_by_bucket(bucket_N: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each bucket that occurs, and where; in order."""
    if not len(bucket_N):
        return
    order_N = np.argsort(bucket_N, kind="stable")
    values, starts = np.unique(bucket_N[order_N], return_index=True)
    ends = [*starts[1:].tolist(), len(order_N)]
    for value, start, end in zip(values.tolist(), starts.tolist(), ends, strict=True):
        yield value, order_N[start:end]
