"""Whether rows that a dataset has already have other bytes in the source now.

A source that grows has another fingerprint in any case, so a row that was replaced meanwhile would not be
noticed by it. The contents of a dataset are the sum of a digest of each of its rows: the sum of the rows
that the source still has must be that of the version before.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from genmod.data.sharding.disk_buckets import DiskBuckets

_DIGITS = 16
_FORM = re.compile(f"[0-9a-f]{{{_DIGITS}}}")


class RowContents:
    """Digests of names and bytes of rows, on disk."""

    def __init__(self) -> None:
        self._chunks = DiskBuckets()
        self._is_known = True

    def add(self, names: Sequence[str], contents: Sequence[str | None]) -> None:
        """Add consecutive rows.

        Args:
            names: of the rows.
            contents: text that changes with the bytes of the row; None of what is not known row by row.
        """
        if None in contents:
            self._is_known = False
        if not self._is_known:
            return
        texts = [f"{name}\x00{content}" for name, content in zip(names, contents, strict=True)]
        digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
        self._chunks.add(len(self._chunks), b"".join(digests))

    def total(self, is_counted_N: NDArray[np.bool_]) -> str:
        """Contents of the rows that are counted; empty if those of any row are not known."""
        total, first = 0, 0
        for chunk in range(len(self._chunks) if self._is_known else 0):
            digest_M = np.frombuffer(b"".join(self._chunks.read(chunk)), dtype="<u8")
            counted_M = digest_M[is_counted_N[first : first + len(digest_M)]]
            total += int(counted_M.sum(dtype=np.uint64))
            first += len(digest_M)
        return _text(total) if self._is_known else ""


def checked(text: object) -> str:
    """Contents that a manifest lists; empty if the text is none, as in one of another program."""
    return text if isinstance(text, str) and _FORM.fullmatch(text) else ""


def added(before: str, new: str) -> str:
    """Contents of a dataset with further rows; empty if either is unknown."""
    return _text(int(before, 16) + int(new, 16)) if before and new else ""


def _text(total: int) -> str:
    return f"{total % (1 << 64):0{_DIGITS}x}"
