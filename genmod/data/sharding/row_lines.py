"""The rows of a catalog on disk, chunk by chunk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from genmod.data.sharding.disk_buckets import DiskBuckets, RowLine, parse_line
from genmod.data.sources.source import Ref


class RowLines:
    """Name, ref and label of each row, as lines of JSON; without refs only names and labels, in less time."""

    def __init__(self, has_refs: bool) -> None:
        self._buckets, self._has_refs = DiskBuckets(), has_refs

    def __len__(self) -> int:
        """Number of chunks."""
        return len(self._buckets)

    def add(self, names: Sequence[str], refs: Sequence[Ref], labels: Sequence[int]) -> None:
        """Add a chunk of rows."""
        if self._has_refs:
            text = "\n".join(map(json.dumps, zip(names, refs, labels, strict=True)))
        else:
            text = json.dumps((names, labels))
        self._buckets.add(len(self), text.encode("ascii"))

    def lines(self, chunk: int) -> list[bytes]:
        """The lines of a chunk, for :func:`~genmod.data.sharding.disk_buckets.parse_line`."""
        assert self._has_refs
        return self._read(chunk).split(b"\n")

    def rows(self, chunk: int, positions: Iterable[int]) -> list[RowLine]:
        """Rows of a chunk by their positions in it; refs are None if there are none."""
        if self._has_refs:
            lines = self.lines(chunk)
            return [parse_line(lines[position]) for position in positions]
        names, labels = json.loads(self._read(chunk))
        return [RowLine(names[position], None, labels[position]) for position in positions]

    def _read(self, chunk: int) -> bytes:
        (data,) = self._buckets.read(chunk)
        return data
