"""Splits of rows by a hash of their keys: independent of the seed and of the other rows. Letter: N keys."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from genmod.data.sources.config import Splits
from genmod.manifest import SPLITS, Split


def split_of(key: str, splits: Splits) -> Split:
    """Determine the split of a key by its hash: independent of the seed and of the other rows."""
    return SPLITS[hashed_codes([key], splits)[0]]


def hashed_codes(keys: Sequence[str], splits: Splits) -> NDArray[np.uint8]:
    """Positions in ``SPLITS`` of the splits of keys."""
    digests = b"".join(
        [
            hashlib.blake2b(key.encode(), digest_size=8, person=b"genmod.split").digest()
            for key in keys
        ]
    )
    share_N = np.frombuffer(digests, dtype="<u8") / 2**64
    code_N = np.full(len(keys), SPLITS.index("train"), dtype=np.uint8)
    code_N[share_N < splits.test + splits.val] = SPLITS.index("val")
    code_N[share_N < splits.test] = SPLITS.index("test")
    return code_N
