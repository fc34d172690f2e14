"""Catalog of a source: all inputs on disk, listed once, classified, and assigned to shards in little memory.

Three passes. *List*: each entry becomes a line of JSON in a temporary file, and a record (digest of its key,
number, label) in one of 256 buckets. *Classify*: within each bucket, rows with equal digests are compared,
and each row gets a code of one byte: its split, or why it is left out. *Assign*: chunk by chunk, the lines
move to the groups of shards that they belong to. Memory contains one chunk, bucket or group, and one byte
per input. Letters: N rows, M rows of a part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from genmod.data.format.keys import sample_key
from genmod.data.sharding.disk_buckets import DiskBuckets, Groups, group_by_bucket, parse_line
from genmod.data.sources.source import BAD_LABEL, NO_LABEL, Entry, Ref, Scan, Source, Splits
from genmod.manifest import SPLITS, Split

CATALOG_CHUNK_ROWS = 1 << 16
"""Rows of one chunk of the catalog, and of one group of shards."""

_PEEK_ROWS = 64
"""Rows whose refs are kept, to determine the shape of the images."""

_KNOWN, _DUPLICATE, _UNLABELLED = 3, 4, 5
"""Codes of rows that belong to no split: in the previous version, key already in use, invalid label."""

_REJECTED = 1 << 62
"""Offset of the number of an input that the source rejects, in place of a row number."""

_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8"), ("label", "<i8")])

RejectedRow = tuple[str, str, str]
"""(key, name, reason) of a rejected input."""

SlotsAndGroups = tuple[NDArray[np.int64], NDArray[np.int64]]
"""For rows of a split: the slot (position in the split's new order), and the group of shards."""


def split_of(key: str, splits: Splits) -> Split:
    """Determine the split of a key by its hash: independent of the seed and of the other rows."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"genmod.split").digest()
    share = int.from_bytes(digest, "little") / 2**64
    if share < splits.test:
        return "test"
    return "val" if share < splits.test + splits.val else "train"


class Catalog:
    """The inputs of one source at the time of listing."""

    def __init__(
        self,
        source: Source,
        splits: Splits,
        known: Iterable[Sequence[str]] = (),
        chunk_rows: int = CATALOG_CHUNK_ROWS,
    ) -> None:
        """List the source.

        Args:
            source: source to list; it is read now.
            splits: shares of the splits.
            known: keys of the previous version, in parts.
            chunk_rows: rows to process together.

        Raises:
            DataError: the source does not exist or is empty.
        """
        self.chunk_rows = chunk_rows
        self.scan = Scan()
        self.first_refs: list[Ref] = []
        self.source_rejected: list[RejectedRow] = []
        """Inputs that the source itself rejects."""
        self._lines, self._records = DiskBuckets(), DiskBuckets()
        self._codes: list[NDArray[np.uint8]] = []
        self._class_ids: dict[str, int] = {}
        self._largest = NO_LABEL
        for keys in known:
            self._record(list(keys), -1, [0] * len(keys))
        self._list(source.entries(self.scan), splits)
        self.code_N = np.concatenate(self._codes) if self._codes else np.zeros(0, dtype=np.uint8)
        self._codes.clear()

    @property
    def inputs(self) -> int:
        """Number of inputs, including the rejected ones."""
        return len(self.code_N) + len(self.source_rejected)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Sorted names of the classes; empty if labels are numbers."""
        return tuple(sorted(self._class_ids))

    @property
    def classes(self) -> int:
        """Number of classes according to the labels; 0 without labels."""
        return len(self._class_ids) or self._largest + 1

    def class_numbers(self, class_names: Sequence[str]) -> Sequence[int]:
        """Translate the catalog's class numbers to positions in ``class_names``."""
        number = {name: position for position, name in enumerate(class_names)}
        return [number[name] for name in self._class_ids]

    def _list(self, entries: Iterator[Entry], splits: Splits) -> None:
        codes = {split: code for code, split in enumerate(SPLITS)}
        lines: list[str] = []
        keys: list[str] = []
        labels: list[int] = []
        row = 0

        def flush() -> None:
            """Write a chunk of lines, and the records and split codes of its rows."""
            nonlocal row
            self._lines.add(len(self._lines), "\n".join(lines).encode("ascii"))
            self._record(keys, row, labels)
            split_codes = [codes[split_of(key, splits)] for key in keys]
            self._codes.append(np.array(split_codes, dtype=np.uint8))
            row += len(keys)
            for part in (lines, keys, labels):
                part.clear()

        for name, ref, label, reason in entries:
            key = sample_key(name)
            if reason is not None:
                self.source_rejected.append((key, name, reason))
                continue
            # Number named classes in the order of their first occurrence.
            if isinstance(label, str):
                number = self._class_ids.setdefault(label, len(self._class_ids))
            else:
                number = label
                self._largest = max(self._largest, label)
            if len(self.first_refs) < _PEEK_ROWS:
                self.first_refs.append(ref)
            lines.append(json.dumps((name, ref, number)))
            keys.append(key)
            labels.append(number)
            if len(keys) == self.chunk_rows:
                flush()
        if keys:
            flush()
        rejected_keys = [key for key, _, _ in self.source_rejected]
        self._record(rejected_keys, _REJECTED, [0] * len(rejected_keys))

    def _record(self, keys: Sequence[str], row: int, labels: Sequence[int]) -> None:
        """Write records into buckets by the first byte of the digest; ``row`` is -1 for known keys."""
        digests = b"".join(hashlib.blake2b(key.encode(), digest_size=16).digest() for key in keys)
        record_N = np.empty(len(keys), dtype=_RECORD)
        digest_N2 = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
        record_N["high"], record_N["low"] = digest_N2[:, 0], digest_N2[:, 1]
        record_N["row"] = -1 if row < 0 else np.arange(row, row + len(keys))
        record_N["label"] = labels
        for bucket, part_N in group_by_bucket((record_N["high"] & 255).astype(np.int64)):
            self._records.add(bucket, record_N[part_N].tobytes())

    def classify(self, classes: int) -> None:
        """Find the rows to leave out: in the previous version, with a duplicate key, with an invalid label.

        Args:
            classes: number of classes that labels must be below; 0 ignores labels.
        """
        known_rejected: set[int] = set()
        for bucket in range(256):
            # Sort the records of a bucket by digest, then by row; known keys have row -1 and come first.
            record_N = np.frombuffer(b"".join(self._records.read(bucket)), dtype=_RECORD)
            record_N = record_N[np.lexsort((record_N["row"], record_N["low"], record_N["high"]))]
            if not len(record_N):
                continue
            # Number the runs of equal digests.
            is_first_N = np.ones(len(record_N), dtype=bool)
            for part in ("high", "low"):
                is_first_N[1:] &= record_N[part][1:] == record_N[part][:-1]
            is_first_N[1:] = ~is_first_N[1:]
            run_N = np.cumsum(is_first_N) - 1
            # Classify the rows: in the previous version, or with an invalid label.
            row_N, label_N = record_N["row"], record_N["label"]
            is_row_N = (row_N >= 0) & (row_N < _REJECTED)
            is_known_N = (row_N[is_first_N] < 0)[run_N]
            is_new_N = is_row_N & ~is_known_N
            is_invalid_N = is_new_N & (classes > 0) & ((label_N < 0) | (label_N >= classes))
            # The first valid row of a run gets the key; later ones are duplicates.
            valid_N = np.flatnonzero(is_new_N & ~is_invalid_N)
            runs, first_valid = np.unique(run_N[valid_N], return_index=True)
            owner_of_run = np.full(run_N[-1] + 1, _REJECTED)
            owner_of_run[runs] = row_N[valid_N[first_valid]]
            is_duplicate_N = is_new_N & (row_N > owner_of_run[run_N])
            # Later codes take precedence.
            for mask_N, code in (
                (is_invalid_N, _UNLABELLED),
                (is_duplicate_N, _DUPLICATE),
                (is_known_N & is_row_N, _KNOWN),
            ):
                self.code_N[row_N[mask_N]] = code
            known_rejected |= set((row_N[is_known_N & (row_N >= _REJECTED)] - _REJECTED).tolist())
        # The previous version has listed these rejected inputs already.
        self.source_rejected = [
            row for number, row in enumerate(self.source_rejected) if number not in known_rejected
        ]

    def rows_of(self, split: Split) -> int:
        """Number of rows of a split."""
        return int(np.count_nonzero(self.code_N == SPLITS.index(split)))

    @property
    def count_rejected(self) -> int:
        """Number of inputs that :meth:`rejected` lists."""
        return len(self.source_rejected) + int(np.count_nonzero(self.code_N >= _DUPLICATE))

    def rejected(self, classes: int) -> Iterator[RejectedRow]:
        """List the inputs rejected without decoding an image: by the source, then by key or label."""
        yield from self.source_rejected
        for chunk in range(len(self._lines)):
            code_N = self._codes_of(chunk)
            if not (code_N >= _DUPLICATE).any():
                continue
            lines = self._lines.read(chunk)[0].split(b"\n")
            for number in np.flatnonzero(code_N >= _DUPLICATE).tolist():
                row = parse_line(lines[number])
                is_duplicate = code_N[number] == _DUPLICATE
                reason = "duplicate key" if is_duplicate else _label_reason(row.label, classes)
                yield sample_key(row.name), row.name, reason

    def assign(self, group_of: Callable[[Split, int, int], SlotsAndGroups]) -> Groups:
        """Assign the rows of all splits to groups of shards.

        Args:
            group_of: returns slots and groups for (split, first row, number of rows); rows are numbered
                within their split, in the order of the source.
        """
        groups = Groups()
        assigned = dict.fromkeys(SPLITS, 0)
        for chunk in range(len(self._lines)):
            code_N = self._codes_of(chunk)
            lines = np.array(self._lines.read(chunk)[0].split(b"\n"), dtype=object)
            for split in SPLITS:
                row_M = np.flatnonzero(code_N == SPLITS.index(split))
                slot_M, group_M = group_of(split, assigned[split], len(row_M))
                assigned[split] += len(row_M)
                for group, part in group_by_bucket(group_M):
                    groups.add(group, slot_M[part], lines[row_M[part]].tolist())
        return groups

    def _codes_of(self, chunk: int) -> NDArray[np.uint8]:
        return self.code_N[chunk * self.chunk_rows : (chunk + 1) * self.chunk_rows]


def _label_reason(label: int, classes: int) -> str:
    if label == NO_LABEL:
        return "has no label"
    if label == BAD_LABEL:
        return "its label is not a class number"
    return f"label {label}, the dataset has {classes} classes"
