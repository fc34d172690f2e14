"""Every input of a source, on disk: listed once, sifted, and dealt to shards in little memory.

Three passes. *List*: each entry becomes a line of JSON in a spill file, and a record (digest of its key,
number, label) in one of 256 buckets. *Sift*: bucket by bucket, so that only rows of equal digests meet, each
row gets a code of one byte: its split, or why it is none. *Place*: chunk by chunk, the lines go to the group
of shards that they belong to. In memory are a chunk, a bucket or a group, and one byte per input.
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

CHUNK_ROWS = 1 << 16
"""Rows that are handled together."""

PEEK_ROWS = 64
"""Rows whose references are kept, to learn what the images are like."""

KNOWN, DUPLICATE, UNLABELLED = 3, 4, 5
"""Latents of rows that are of no split: the parent has it, its key is in use, its label is wrong."""

_FAULTY = 1 << 62
"""Added to the number of an input that the source refuses, in place of a row's."""

_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8"), ("label", "<i8")])

RejectedRow = tuple[str, str, str]
"""(key, name, reason)."""

Places = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Of some rows of a split: the slot, which is the place in the split's new order, and the group of shards."""


def split_of(key: str, splits: Splits) -> Split:
    """The split of a key: the same for ever, whatever else the dataset holds and whatever the seed."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"genmod.split").digest()
    share = int.from_bytes(digest, "little") / 2**64
    if share < splits.test:
        return "test"
    return "val" if share < splits.test + splits.val else "train"


class Catalog:
    """The inputs of one source, as it was when it was listed."""

    def __init__(
        self,
        source: Source,
        splits: Splits,
        known: Iterable[Sequence[str]] = (),
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        """List the source.

        Args:
            source: to be listed; it is read now.
            splits: shares by which a key belongs to a split.
            known: keys that the parent has, in parts.
            chunk_rows: handled together.

        Raises:
            DataError: the source is not there or holds nothing.
        """
        self.chunk_rows = chunk_rows
        self.scan = Scan()
        self.first_refs: list[Ref] = []
        self.faults: list[RejectedRow] = []
        """Inputs that the source itself refuses."""
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
        """How many there are, also of those that cannot be rows."""
        return len(self.code_N) + len(self.faults)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Sorted; none if labels are numbers."""
        return tuple(sorted(self._class_ids))

    @property
    def classes(self) -> int:
        """How many classes the labels tell of, 0 without labels."""
        return len(self._class_ids) or self._largest + 1

    def class_numbers(self, class_names: Sequence[str]) -> Sequence[int]:
        """For each number in the lines the class's place in ``class_names``."""
        place = {name: number for number, name in enumerate(class_names)}
        return [place[name] for name in self._class_ids]

    def _list(self, entries: Iterator[Entry], splits: Splits) -> None:
        codes = {split: code for code, split in enumerate(SPLITS)}
        lines: list[str] = []
        keys: list[str] = []
        labels: list[int] = []
        row = 0

        def flush() -> None:
            nonlocal row
            self._lines.add(len(self._lines), "\n".join(lines).encode("ascii"))
            self._record(keys, row, labels)
            split_codes = [codes[split_of(key, splits)] for key in keys]
            self._codes.append(np.array(split_codes, dtype=np.uint8))
            row += len(keys)
            for part in (lines, keys, labels):
                part.clear()

        for name, ref, label, fault in entries:
            key = sample_key(name)
            if fault is not None:
                self.faults.append((key, name, fault))
                continue
            if isinstance(label, str):
                number = self._class_ids.setdefault(label, len(self._class_ids))
            else:
                number = label
                self._largest = max(self._largest, label)
            if len(self.first_refs) < PEEK_ROWS:
                self.first_refs.append(ref)
            lines.append(json.dumps((name, ref, number)))
            keys.append(key)
            labels.append(number)
            if len(keys) == self.chunk_rows:
                flush()
        if keys:
            flush()
        self._record([key for key, _, _ in self.faults], _FAULTY, [0] * len(self.faults))

    def _record(self, keys: Sequence[str], row: int, labels: Sequence[int]) -> None:
        """Put keys into buckets by the first byte of their digests; ``row`` -1 is for known ones."""
        digests = b"".join(hashlib.blake2b(key.encode(), digest_size=16).digest() for key in keys)
        record_N = np.empty(len(keys), dtype=_RECORD)
        digest_N2 = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
        record_N["high"], record_N["low"] = digest_N2[:, 0], digest_N2[:, 1]
        record_N["row"] = -1 if row < 0 else np.arange(row, row + len(keys))
        record_N["label"] = labels
        for bucket, part_N in group_by_bucket((record_N["high"] & 255).astype(np.int64)):
            self._records.add(bucket, record_N[part_N].tobytes())

    def classify(self, classes: int) -> None:
        """Mark rows that are no rows of the dataset: known, of a key in use, of a label that is none.

        Args:
            classes: labels must be below it; 0: no labels are wanted.
        """
        known_faults: set[int] = set()
        for bucket in range(256):
            record_N = np.frombuffer(b"".join(self._records.read(bucket)), dtype=_RECORD)
            record_N = record_N[np.lexsort((record_N["row"], record_N["low"], record_N["high"]))]
            if not len(record_N):
                continue
            first_N = np.ones(len(record_N), dtype=bool)
            for part in ("high", "low"):
                first_N[1:] &= record_N[part][1:] == record_N[part][:-1]
            first_N[1:] = ~first_N[1:]
            family_N = np.cumsum(first_N) - 1
            row_N, label_N = record_N["row"], record_N["label"]
            real_N = (row_N >= 0) & (row_N < _FAULTY)
            known_N = (row_N[first_N] < 0)[family_N]
            wrong_N = real_N & ~known_N & (classes > 0) & ((label_N < 0) | (label_N >= classes))
            good_N = np.flatnonzero(real_N & ~known_N & ~wrong_N)
            used_by, heads = np.unique(family_N[good_N], return_index=True)
            head_N = np.full(family_N[-1] + 1, _FAULTY)
            head_N[used_by] = row_N[good_N[heads]]
            twin_N = real_N & ~known_N & (row_N > head_N[family_N])
            for mask_N, code in (
                (wrong_N, UNLABELLED),
                (twin_N, DUPLICATE),
                (known_N & real_N, KNOWN),
            ):
                self.code_N[row_N[mask_N]] = code
            known_faults |= set((row_N[known_N & (row_N >= _FAULTY)] - _FAULTY).tolist())
        self.faults = [row for at, row in enumerate(self.faults) if at not in known_faults]

    def rows_of(self, split: Split) -> int:
        """How many rows a split has."""
        return int(np.count_nonzero(self.code_N == SPLITS.index(split)))

    @property
    def count_rejected(self) -> int:
        """How many :meth:`rejected` gives."""
        return len(self.faults) + int(np.count_nonzero(self.code_N >= DUPLICATE))

    def rejected(self, classes: int) -> Iterator[RejectedRow]:
        """What is refused without looking at an image: first what the source refuses, then in order."""
        yield from self.faults
        for chunk in range(len(self._lines)):
            code_N = self._codes_of(chunk)
            if not (code_N >= DUPLICATE).any():
                continue
            lines = self._lines.read(chunk)[0].split(b"\n")
            for number in np.flatnonzero(code_N >= DUPLICATE).tolist():
                row = parse_line(lines[number])
                twin = code_N[number] == DUPLICATE
                reason = "its key is in use already" if twin else _label_fault(row.label, classes)
                yield sample_key(row.name), row.name, reason

    def place(self, group_of: Callable[[Split, int, int], Places]) -> Groups:
        """Deal the rows of all splits to groups.

        Args:
            group_of: for a split, the number of its first row in a chunk and how many there are: their
                places.
        """
        groups = Groups()
        storage_errors = dict.fromkeys(SPLITS, 0)
        for chunk in range(len(self._lines)):
            code_N = self._codes_of(chunk)
            lines = np.array(self._lines.read(chunk)[0].split(b"\n"), dtype=object)
            for split in SPLITS:
                mine_M = np.flatnonzero(code_N == SPLITS.index(split))
                slot_M, group_M = group_of(split, storage_errors[split], len(mine_M))
                storage_errors[split] += len(mine_M)
                for group, part_N in group_by_bucket(group_M):
                    groups.add(group, slot_M[part_N], lines[mine_M[part_N]].tolist())
        return groups

    def _codes_of(self, chunk: int) -> NDArray[np.uint8]:
        return self.code_N[chunk * self.chunk_rows : (chunk + 1) * self.chunk_rows]


def _label_fault(label: int, classes: int) -> str:
    if label == NO_LABEL:
        return "has no label"
    if label == BAD_LABEL:
        return "its label is not a number of a class"
    return f"label {label}, there are {classes} classes"
