"""Catalog of a source: all inputs on disk, listed once, classified, and assigned to shards in little memory.

Three passes. *List*: each entry becomes a line of JSON in a temporary file, and a record (digest of its key,
number, label) in one of 256 buckets. *Classify*: within each bucket, rows with equal digests are compared,
and each row gets a code of one byte: its split, or why it is left out. *Assign*: chunk by chunk, the lines
move to the groups of shards that they belong to. Memory contains one chunk, bucket or group, and one byte
per input. Letters: N rows, M rows of a part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from genmod.data.format.keys import sample_key
from genmod.data.sharding.classify import (
    DUPLICATE,
    KNOWN,
    KNOWN_REJECTED,
    RECORD,
    REJECTED,
    classify,
    make_records,
)
from genmod.data.sharding.copies import Copies
from genmod.data.sharding.disk_buckets import DiskBuckets, Groups, group_by_bucket
from genmod.data.sharding.hashed_splits import hashed_codes
from genmod.data.sharding.label_numbers import LabelNumbers
from genmod.data.sharding.new_classes import NewClasses
from genmod.data.sharding.row_contents import RowContents
from genmod.data.sharding.row_lines import RowLines
from genmod.data.sharding.row_sample import RowSample
from genmod.data.sources.config import Splits
from genmod.data.sources.source import LABEL_REASONS, NO_LABEL, Ref, Scan, Source
from genmod.errors import ConfigError, sanitize
from genmod.manifest import SPLITS, Split

CATALOG_CHUNK_ROWS = 1 << 16
"""Rows of one chunk of the catalog, and of one group of shards."""

RejectedRow = tuple[str, str, str]
"""(key, name, reason) of a rejected input."""

SlotsAndGroups = tuple[NDArray[np.int64], NDArray[np.int64]]
"""For rows of a split: the slot (position in the split's new order), and the group of shards."""


class Catalog:
    """The inputs of one source at the time of listing."""

    def __init__(
        self,
        source: Source,
        splits: Splits | Literal["source"],
        known: Iterable[Sequence[str]] = (),
        chunk_rows: int = CATALOG_CHUNK_ROWS,
        sample_per_class: int = 0,
        *,
        identify: bool = True,
        new_classes: NewClasses | None = None,
        known_rejected: Sequence[str] = (),
    ) -> None:
        """List the source.

        Args:
            source: source to list; it is read now.
            splits: shares of the splits, or ``source`` for those that the source declares.
            known: keys of the previous version's rows, in parts.
            chunk_rows: rows to process together.
            sample_per_class: rows of each class to keep in :attr:`sample`, in addition to others.
            new_classes: decides which rows are passed over for their class, and counts them. None: no row.
            known_rejected: keys of the inputs that the previous version rejected.
            identify: whether to compute the source's fingerprint, which may read its content, and to keep
                what fetches each row. If not, rows cannot be assigned to shards.

        Raises:
            DataError: the source does not exist or is empty.
        """
        self.chunk_rows = chunk_rows
        self.scan = Scan(identify=identify)
        self.sample = RowSample(source.block_fields, per_class=sample_per_class)
        """Rows of all splits, to examine their images."""
        self.source_rejected: list[RejectedRow] = []
        """Inputs that the source itself rejects."""
        self._lines, self._records = RowLines(has_refs=identify), DiskBuckets()
        self.copies, self._contents = Copies(), RowContents()
        self._codes: list[NDArray[np.uint8]] = []
        self._labels = LabelNumbers(source.text)
        self.rows_SK = np.zeros((len(SPLITS), 0), dtype=np.int64)
        """After :meth:`classify`: rows of each split and class, in the catalog's numbers."""
        self.lost = 0
        """After :meth:`classify`: rows of the previous version that the source does not contain any more."""
        self._duplicate_M = self._owner_M = np.zeros(0, dtype=np.int64)
        for keys in known:
            self._record(list(keys), -1, [0] * len(keys))
        self._record(known_rejected, -1, [KNOWN_REJECTED] * len(known_rejected))
        self.new_classes = new_classes or NewClasses(None)
        self._list(source, splits)
        self.code_N = np.concatenate(self._codes) if self._codes else np.zeros(0, dtype=np.uint8)
        self._codes.clear()

    @property
    def inputs(self) -> int:
        """Number of inputs, including the rejected ones."""
        return len(self.code_N) + len(self.source_rejected)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the declared order, else sorted; empty if labels are numbers."""
        return self._labels.names(self.scan.class_names)

    @property
    def classes(self) -> int:
        """Number of classes according to the labels; 0 without labels."""
        return self._labels.count(self.scan.class_names)

    @property
    def bad_labels(self) -> Counter[str]:
        """Rows whose label is of no class, by the reason; without those that have none."""
        return self._labels.bad

    def class_numbers(self, class_names: Sequence[str]) -> Sequence[int]:
        """Translate the catalog's class numbers to positions in ``class_names``."""
        return self._labels.places(class_names)

    def _list(self, source: Source, splits: Splits | Literal["source"]) -> None:
        codes = {split: code for code, split in enumerate(SPLITS)}
        names: list[str] = []
        refs: list[Ref] = []
        labels: list[int] = []
        contents: list[str | None] = []
        split_codes: list[int] = []
        row = 0

        def flush() -> None:
            """Write a chunk of lines, and the records and split codes of its rows."""
            nonlocal row
            self._lines.add(names, refs, labels)
            if self.scan.identify:
                self.copies.add(row, list(map(source.content_digest, refs)))
            self._contents.add(names, contents)
            keys = [sample_key(name) for name in names]
            self.sample.add(refs, labels, self._record(keys, row, labels))
            self._codes.append(
                np.array(split_codes, dtype=np.uint8)
                if splits == "source"
                else hashed_codes(keys, splits)
            )
            row += len(keys)
            for part in (names, refs, labels, contents, split_codes):
                part.clear()

        wanted, is_declared = source.options.labels, splits == "source"
        for name, ref, label, reason, split, content in source.entries(self.scan):
            if wanted and self.new_classes.contains(label):
                self.scan.census.pass_over("images of new classes (data.new_classes)", name)
                continue
            if reason is not None:
                self.source_rejected.append((sample_key(name), name, reason))
                continue
            number = self._labels.number(label) if wanted else NO_LABEL
            if is_declared:
                if split is None:
                    raise ConfigError(
                        f"{source.text}: data.splits is source, but {sanitize(name)} is in no split; set "
                        "shares, e.g. data.splits={val: 0.1, test: 0.1}"
                    )
                split_codes.append(codes[split])
            names.append(name)
            refs.append(ref)
            labels.append(number)
            contents.append(content)
            if len(names) == self.chunk_rows:
                flush()
        if names:
            flush()
        rejected_keys = [key for key, _, _ in self.source_rejected]
        self._record(rejected_keys, REJECTED, [0] * len(rejected_keys))

    def _record(self, keys: Sequence[str], row: int, labels: Sequence[int]) -> NDArray[np.uint64]:
        """Write records into buckets by the first byte of the digest; ``row`` is -1 for known keys.

        Returns:
            the first 64 bits of the digest of each key.
        """
        record_N = make_records(keys, row, labels)
        for bucket, part_N in group_by_bucket((record_N["high"] & 255).astype(np.int64)):
            self._records.add(bucket, record_N[part_N].tobytes())
        return record_N["high"]

    def classify(self, classes: int) -> None:
        """Find the rows to leave out: in the previous version, with a duplicate key, with an invalid label.

        Args:
            classes: number of classes that labels must be below; 0 ignores labels.
        """
        known_rejected: set[int] = set()
        duplicates = [(np.zeros(0, dtype=np.int64),) * 2]
        self.rows_SK = np.zeros((len(SPLITS), classes), dtype=np.int64)
        for bucket in range(256):
            record_N = np.frombuffer(b"".join(self._records.read(bucket)), dtype=RECORD)
            if not len(record_N):
                continue
            result = classify(record_N, classes)
            for row_M, code in result.left_out:
                self.code_N[row_M] = code
            duplicates.append((result.duplicate_M, result.owner_M))
            self.lost += result.lost
            known_rejected |= set(result.known_rejected)
            # Count the rows of each class.
            record_N = record_N[(record_N["row"] >= 0) & (record_N["row"] < REJECTED)]
            code_N = self.code_N[record_N["row"]]
            is_used_N = code_N < len(SPLITS)
            if classes:
                place_M = code_N[is_used_N].astype(np.int64), record_N["label"][is_used_N]
                np.add.at(self.rows_SK, place_M, 1)
        self._duplicate_M, self._owner_M = map(np.concatenate, zip(*duplicates, strict=True))
        # The previous version has listed these rejected inputs already.
        self.source_rejected = [
            row for number, row in enumerate(self.source_rejected) if number not in known_rejected
        ]

    def rows_of(self, split: Split) -> int:
        """Number of rows of a split."""
        return int(np.count_nonzero(self.code_N == SPLITS.index(split)))

    def contents(self, *, known: bool) -> str:
        """Contents of the rows of the previous version, or of all others; empty if they are not known."""
        return self._contents.total((self.code_N == KNOWN) == known)

    @property
    def count_rejected(self) -> int:
        """Number of inputs that :meth:`rejected` lists."""
        return len(self.source_rejected) + int(np.count_nonzero(self.code_N >= DUPLICATE))

    def rejected(self, classes: int) -> Iterator[RejectedRow]:
        """List the inputs rejected without decoding an image: by the source, then by key or label."""
        yield from self.source_rejected
        owner_name = self.names_of(self._owner_M)
        owners = dict(zip(self._duplicate_M.tolist(), self._owner_M.tolist(), strict=True))
        for chunk in range(len(self._lines)):
            code_N = self._codes_of(chunk)
            if not (code_N >= DUPLICATE).any():
                continue
            numbers = np.flatnonzero(code_N >= DUPLICATE).tolist()
            for number, row in zip(numbers, self._lines.rows(chunk, numbers), strict=True):
                is_duplicate = code_N[number] == DUPLICATE
                if is_duplicate:
                    owner = owners[chunk * self.chunk_rows + number]
                    reason = f"duplicate of an input before: {owner_name[owner]}"
                else:
                    reason = _label_reason(row.label, classes)
                yield sample_key(row.name), row.name, reason

    def names_of(self, row_M: NDArray[np.int64]) -> dict[int, str]:
        """Names of rows by number, a chunk at a time."""
        names: dict[int, str] = {}
        row_M = np.unique(row_M)
        for chunk in np.unique(row_M // self.chunk_rows).tolist():
            part = row_M[row_M // self.chunk_rows == chunk]
            rows = self._lines.rows(chunk, (part - chunk * self.chunk_rows).tolist())
            names |= zip(part.tolist(), (row.name for row in rows), strict=True)
        return names

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
            lines = np.array(self._lines.lines(chunk), dtype=object)
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
    return LABEL_REASONS.get(label) or f"label {label}, the dataset has {classes} classes"
