"""Buckets of bytes on disk: they replace lists in plans of millions of rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_MEMORY_BYTES = 16 << 20
"""Smaller files stay in memory."""


class DiskBuckets:
    """Lists of byte strings by bucket, in the order in which they were added.

    They are stored in an unnamed temporary file (in ``TMPDIR``), which the system deletes when the process
    ends, even by a crash.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_MEMORY_BYTES)  # noqa: SIM115
        self._extents: dict[int, list[tuple[int, int]]] = {}
        self._end = 0

    def add(self, bucket: int, piece: bytes) -> None:
        """Append a byte string to a bucket."""
        self._file.seek(self._end)
        self._file.write(piece)
        self._extents.setdefault(bucket, []).append((self._end, len(piece)))
        self._end += len(piece)

    def read(self, bucket: int) -> list[bytes]:
        """Read all byte strings of a bucket, in order."""
        pieces: list[bytes] = []
        for start, length in self._extents.get(bucket, ()):
            self._file.seek(start)
            pieces.append(self._file.read(length))
        return pieces

    def __len__(self) -> int:
        return len(self._extents)


class RowLine(NamedTuple):
    """One row of the catalog, stored as a line of JSON."""

    name: str
    ref: Any
    label: int
    """Class number; of named classes the catalog's own numbering."""


class Groups:
    """Rows by group of shards, on disk; the group read last is cached."""

    def __init__(self) -> None:
        self._buckets = DiskBuckets()
        self._cached: tuple[int, list[bytes]] = (-1, [])

    def add(self, group: int, slot_M: NDArray[np.int64], lines: Sequence[bytes]) -> None:
        """Append rows to a group.

        Args:
            group: number of the group.
            slot_M: int64 slots of the rows.
            lines: the rows as lines of JSON.
        """
        head = len(lines).to_bytes(8, "little")
        self._buckets.add(group, head + slot_M.astype("<i8").tobytes() + b"\n".join(lines))

    def rows(self, group: int, first: int, count: int) -> list[RowLine]:
        """Read ``count`` rows of a group, ordered by slot, from number ``first`` on."""
        if self._cached[0] != group:
            # Each part consists of the number of rows, their slots, and their lines.
            slots: list[NDArray[np.int64]] = []
            lines: list[bytes] = []
            for part in self._buckets.read(group):
                end = 8 + 8 * int.from_bytes(part[:8], "little")
                slots.append(np.frombuffer(part[8:end], dtype="<i8"))
                lines += part[end:].split(b"\n")
            order = np.argsort(np.concatenate(slots), kind="stable").tolist()
            self._cached = group, [lines[number] for number in order]
        return [parse_line(line) for line in self._cached[1][first : first + count]]


def parse_line(line: bytes) -> RowLine:
    """Parse a line of the catalog."""
    return RowLine(*json.loads(line))


def group_by_bucket(bucket_N: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """For each bucket that occurs, in ascending order: its number and the positions where it occurs."""
    if not len(bucket_N):
        return
    order_N = np.argsort(bucket_N, kind="stable")
    values, starts = np.unique(bucket_N[order_N], return_index=True)
    ends = [*starts[1:].tolist(), len(order_N)]
    for value, start, end in zip(values.tolist(), starts.tolist(), ends, strict=True):
        yield value, order_N[start:end]
