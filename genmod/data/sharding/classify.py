"""Classifies the records of a catalog: which rows are left out, and why.

Letters: N records, M rows of a part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

KNOWN, DUPLICATE, UNLABELLED = 3, 4, 5
"""Codes of rows that belong to no split: in the previous version, key already in use, invalid label."""

REJECTED = 1 << 62
"""Offset of the number of an input that the source rejects, in place of a row number."""

KNOWN_REJECTED = -9
"""Label of a known key that the previous version rejected."""

RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8"), ("label", "<i8")])
"""Digest of a key, number of the row (-1: of the previous version), label."""


def make_records(keys: Sequence[str], first_row: int, labels: Sequence[int]) -> NDArray[np.void]:
    """Records of consecutive rows; ``first_row`` is -1 for keys of the previous version."""
    digests = b"".join([hashlib.blake2b(key.encode(), digest_size=16).digest() for key in keys])
    record_N = np.empty(len(keys), dtype=RECORD)
    digest_N2 = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
    record_N["high"], record_N["low"] = digest_N2[:, 0], digest_N2[:, 1]
    record_N["row"] = -1 if first_row < 0 else np.arange(first_row, first_row + len(keys))
    record_N["label"] = labels
    return record_N


class Classified(NamedTuple):
    """What becomes of the rows of some records."""

    left_out: tuple[tuple[NDArray[np.int64], int], ...]
    """Rows that are left out, and their code; later ones take precedence."""
    duplicate_M: NDArray[np.int64]
    """Rows whose key is in use."""
    owner_M: NDArray[np.int64]
    """For each of these the row that has the key."""
    lost: int
    """Rows of the previous version that the source does not contain any more."""
    known_rejected: list[int]
    """Numbers of the inputs that the source rejects and that the previous version has listed."""


def classify(record_N: NDArray[np.void], classes: int) -> Classified:
    """Compare records with equal digests; all of them must be given together.

    Args:
        record_N: records, of type :data:`RECORD`; at least one.
        classes: number of classes that labels must be below; 0 ignores labels.
    """
    # Sort by digest, then by row; known keys have row -1 and come first.
    record_N = record_N[np.lexsort((record_N["row"], record_N["low"], record_N["high"]))]
    # Number the runs of equal digests.
    is_first_N = np.ones(len(record_N), dtype=bool)
    for part in ("high", "low"):
        is_first_N[1:] &= record_N[part][1:] == record_N[part][:-1]
    is_first_N[1:] = ~is_first_N[1:]
    run_N = np.cumsum(is_first_N) - 1
    # Classify the rows: in the previous version, or with an invalid label.
    row_N, label_N = record_N["row"], record_N["label"]
    is_row_N = (row_N >= 0) & (row_N < REJECTED)
    is_known_N = (row_N[is_first_N] < 0)[run_N]
    is_new_N = is_row_N & ~is_known_N
    is_invalid_N = is_new_N & (classes > 0) & ((label_N < 0) | (label_N >= classes))
    # Known rows that the source does not contain: each is a run of records with row -1 alone.
    is_in_source = np.zeros(run_N[-1] + 1, dtype=bool)
    is_in_source[run_N[row_N >= 0]] = True
    was_row = np.zeros(run_N[-1] + 1, dtype=bool)
    was_row[run_N[(row_N < 0) & (label_N != KNOWN_REJECTED)]] = True
    # The first valid row of a run gets the key; later ones are duplicates.
    valid_N = np.flatnonzero(is_new_N & ~is_invalid_N)
    runs, first_valid = np.unique(run_N[valid_N], return_index=True)
    owner_of_run = np.full(run_N[-1] + 1, REJECTED)
    owner_of_run[runs] = row_N[valid_N[first_valid]]
    is_duplicate_N = is_new_N & (row_N > owner_of_run[run_N])
    return Classified(
        left_out=(
            (row_N[is_invalid_N], UNLABELLED),
            (row_N[is_duplicate_N], DUPLICATE),
            (row_N[is_known_N & is_row_N], KNOWN),
        ),
        duplicate_M=row_N[is_duplicate_N],
        owner_M=owner_of_run[run_N[is_duplicate_N]],
        lost=int(np.count_nonzero(was_row & ~is_in_source)),
        known_rejected=(row_N[is_known_N & (row_N >= REJECTED)] - REJECTED).tolist(),
    )
