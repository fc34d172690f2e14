"""A sample of a source's rows: those with the smallest digests of their keys, kept while it is listed.

It depends on the keys alone, not on the order of the rows. Of sources that read a block of rows to fetch one
(row groups of Parquet files), the rows are from a few blocks. Letters: N rows, M rows of a part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genmod.data.sharding.disk_buckets import group_by_bucket
from genmod.data.sources.source import Ref

SAMPLE_ROWS = 256
"""Rows of a sample."""

_BLOCKS = 8
"""Blocks that a sample is from, at most."""

_CLASSES = 1000
"""Classes whose rows are kept apart: the first ones in the order of the source."""


class SampledRow(NamedTuple):
    """One row of a sample. Samples are sorted by digest."""

    digest: int
    """First 64 bits of the digest of its key."""
    ref: Ref
    label: int
    """Class number of the catalog, or a negative number."""


class RowSample:
    """The rows with the smallest digests, of all that were added."""

    def __init__(self, block_fields: int = 0, rows: int = SAMPLE_ROWS, per_class: int = 0) -> None:
        """Start with no rows.

        Args:
            block_fields: number of the leading values of a ref that name its block; 0: there are no blocks.
            rows: size of the sample.
            per_class: rows to keep of each of the first classes, in addition; of one block each.
        """
        self._block_fields, self._rows, self._per_class = block_fields, rows, per_class
        self._blocks: dict[bytes, list[SampledRow]] = {}
        self._classes: dict[int, tuple[bytes, list[SampledRow]]] = {}

    def add(self, refs: Sequence[Ref], labels: Sequence[int], digest_N: NDArray[np.uint64]) -> None:
        """Add rows, in the order of the source."""
        chunk = _Chunk(refs, labels, digest_N)
        for block, row_M in self._by_block(refs):
            kept = self._blocks.setdefault(block, [])
            chunk.keep(kept, row_M, self._rows)
            if len(self._blocks) > _BLOCKS:
                del self._blocks[max(self._blocks)]
            if self._per_class:
                self._add_classes(chunk, block, row_M)

    def _add_classes(self, chunk: _Chunk, block: bytes, row_M: NDArray[np.int64]) -> None:
        """Keep rows of each class, from the block with the smallest digest that has the class."""
        label_M = np.array([chunk.labels[row] for row in row_M.tolist()])
        for label, part in group_by_bucket(label_M):
            if label not in self._classes and len(self._classes) == _CLASSES:
                continue
            kept = self._classes.setdefault(label, (block, []))
            if block < kept[0]:
                kept = self._classes[label] = block, []
            if block == kept[0]:
                chunk.keep(kept[1], row_M[part], self._per_class)

    def rows(self) -> list[SampledRow]:
        """The sample, sorted by digest."""
        return _smallest([row for kept in self._blocks.values() for row in kept], self._rows)

    def rows_by_class(self) -> dict[int, list[SampledRow]]:
        """The rows of each of the first classes, sorted by digest."""
        return {label: kept for label, (_, kept) in sorted(self._classes.items())}

    def _by_block(self, refs: Sequence[Ref]) -> Iterator[tuple[bytes, NDArray[np.int64]]]:
        """Digest of each block, and its rows; one block if the source has none."""
        if not self._block_fields:
            yield b"", np.arange(len(refs))
            return
        blocks = [tuple(ref[: self._block_fields]) for ref in refs]
        first = 0
        for row in range(1, len(blocks) + 1):
            if row == len(blocks) or blocks[row] != blocks[first]:
                name = json.dumps(blocks[first]).encode()
                yield hashlib.blake2b(name, digest_size=16).digest(), np.arange(first, row)
                first = row


@dataclass(frozen=True)
class _Chunk:
    """Rows that are added together."""

    refs: Sequence[Ref]
    labels: Sequence[int]
    digest_N: NDArray[np.uint64]

    def keep(self, kept: list[SampledRow], row_M: NDArray[np.int64], most: int) -> None:
        """Keep the smallest ``most`` of the kept rows and of these rows of the chunk."""
        digest_M = self.digest_N[row_M]
        if len(row_M) > most:
            row_M = row_M[np.argpartition(digest_M, most)[:most]]
        new = [
            SampledRow(int(self.digest_N[row]), self.refs[row], self.labels[row])
            for row in row_M.tolist()
        ]
        kept[:] = _smallest([*kept, *new], most)


def _smallest(rows: list[SampledRow], most: int) -> list[SampledRow]:
    return sorted(rows, key=lambda row: row.digest)[:most]
