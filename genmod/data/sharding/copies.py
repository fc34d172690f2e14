"""Finds inputs whose files are the same bytes under several names, which all are kept.

Letters: N records, M rows of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genmod.data.sharding.disk_buckets import DiskBuckets, group_by_bucket
from genmod.manifest import SPLITS

_RECORD = np.dtype([("content", "<u8"), ("row", "<i8")])


class CopyCount(NamedTuple):
    """How many rows are copies."""

    copies: int = 0
    """Rows with the bytes of an earlier row."""
    in_several: int = 0
    """Rows of val and test whose bytes are in another split too."""
    first: int = -1
    """The first of these rows; -1 if there are none."""


class Copies:
    """Digests of the files of rows, on disk."""

    def __init__(self) -> None:
        self._buckets = DiskBuckets()

    def add(self, first: int, digests: Sequence[str | None]) -> None:
        """Add the files of consecutive rows.

        Args:
            first: number of the first row.
            digests: hexadecimal digest of each file; None of what is not known by its content.
        """
        known = [row for row, digest in enumerate(digests) if digest is not None]
        record_M = np.empty(len(known), dtype=_RECORD)
        record_M["row"] = np.array(known, dtype=np.int64) + first
        record_M["content"] = [int(digest[:16], 16) for digest in digests if digest is not None]
        for bucket, part in group_by_bucket((record_M["content"] & 255).astype(np.int64)):
            self._buckets.add(bucket, record_M[part].tobytes())

    def count(self, code_N: NDArray[np.uint8]) -> CopyCount:
        """Count the copies among the rows that are taken; ``code_N`` is the split of each row, or larger."""
        copies = in_several = 0
        first = len(code_N)
        for bucket in range(256):
            record_M = np.frombuffer(b"".join(self._buckets.read(bucket)), dtype=_RECORD)
            code_M = code_N[record_M["row"]]
            record_M, code_M = record_M[code_M < len(SPLITS)], code_M[code_M < len(SPLITS)]
            if not len(record_M):
                continue
            _, run_M = np.unique(record_M["content"], return_inverse=True)
            runs = int(run_M.max()) + 1
            copies += len(run_M) - runs
            # A run is in several splits if its smallest and its largest code differ.
            least, most = np.full(runs, 255), np.zeros(runs, dtype=np.int64)
            np.minimum.at(least, run_M, code_M)
            np.maximum.at(most, run_M, code_M)
            shared = record_M["row"][(least < most)[run_M] & (code_M > 0)]
            in_several += len(shared)
            first = min(first, int(shared.min(initial=first)))
        return CopyCount(copies, in_several, first if in_several else -1)
