"""Source of Parquet tables: a column of encoded images, and a column of labels if there are any."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain, repeat
from typing import Any

import pyarrow as pa

from genmod.budget import BUDGET
from genmod.config import canonical_json, fingerprint
from genmod.data.format.foreign import Rejected
from genmod.data.sources.arrays import row_name
from genmod.data.sources.census import Census
from genmod.data.sources.columns import ChosenColumns, choose_columns, text_type
from genmod.data.sources.identity import identify
from genmod.data.sources.label_columns import LabelColumn
from genmod.data.sources.parquet_file import ParquetColumn, ParquetFile, texts
from genmod.data.sources.patterns import source_files
from genmod.data.sources.source import Entry, Image, Ref, Scan, Source, readable_name
from genmod.data.sources.split_names import (
    partitions_of,
    report_splits,
    split_in_path,
    split_named,
)
from genmod.errors import DataError, sanitize
from genmod.manifest import Split

_SUFFIX = ".parquet"


class Parquet(Source):
    """Rows of Parquet files, named by file and row number. Row groups are read as a whole.

    The name of a file in a subfolder contains its path below the folder of the source, or below the folder in
    front of the first brace or wildcard of the pattern.
    """

    kind = "parquet"
    random_access = False
    block_fields = 2

    def entries(self, scan: Scan) -> Iterator[Entry]:
        """List every row in the order of the files; reads the labels and splits, not the images."""
        content = hashlib.sha256()
        rows, kinds = 0, dict[str, str]()
        names = _ClassNames()
        splits: set[Split | None] = set()
        files = list(source_files(self.text, self.where, _SUFFIX, scan.census))
        urls = [url for _, url in files] if scan.identify else []
        identities = chain(identify(urls, self.options.identity), repeat(""))
        for (path, url), identity in zip(files, identities, strict=False):
            stem = readable_name(path).removesuffix(_SUFFIX)
            content.update(canonical_json([stem, identity]))
            with closing(ParquetFile(url)) as file:
                # Choose the columns.
                chosen = choose_columns(file, self.options, partitions_of(path))
                scan.census.decide(chosen.decision)
                images = file.column(chosen.image)
                labels = LabelColumn(file, chosen)
                if labels.kind is not None:
                    kinds.setdefault(labels.kind, url)
                if len(kinds) > 1:
                    first, second = (f"{sanitize(url)} has {kind}" for kind, url in kinds.items())
                    raise DataError(f"{self.text}: {second}, but {first}; choose with data.label")
                # List the rows, one row group at a time.
                number = 0
                for group in range(file.groups):
                    size_bytes = images.check_group(group)
                    scan.size_bytes += size_bytes
                    scan.max_fetch_bytes = max(scan.max_fetch_bytes, size_bytes)
                    split_of_row = _splits(file, chosen, path, group)
                    for row, (label, split) in enumerate(
                        zip(labels.read(group), split_of_row, strict=True)
                    ):
                        content.update(f"{label!r},".encode())
                        splits.add(split)
                        names.add(label)
                        ref = [url, group, row, chosen.image, file.digest]
                        yield Entry(row_name(number, f"{stem}-"), ref, label, split=split)
                        number += 1
                names.declare(labels.declared)
            rows += number
        if rows == 0:
            raise DataError(f"{self.text} contains no rows")
        scan.class_names = names.in_order(scan.census)
        report_splits(scan.census, splits, "columns or names of the files")
        scan.fingerprint = fingerprint(self.kind, content.hexdigest())

    def fetch(self, refs: Sequence[Ref], fingerprint: str) -> Iterator[Image]:
        """Fetch rows; a ref is [file, row group, row in the group, column, digest of the footer]."""
        current: tuple[str, int] | None = None
        images: ParquetColumn | None = None
        column: Any = None
        for url, group, row, path, digest in refs:
            # Open a file, or read a row group, only when it changes.
            if images is None or current is None or current[0] != url:
                file = ParquetFile(url)
                if file.digest != digest:
                    raise DataError(f"{url} changed while it was sharded; run genmod shard again")
                images = file.column(path)
            if current != (url, group):
                images.check_group(group)
                column = images.read(group)
                current = (url, group)
            yield _image_bytes(column, row, path)


class _ClassNames:
    """Names of classes that files declare and rows have, matched by name."""

    def __init__(self) -> None:
        self._declared: dict[str, None] = {}
        self._in_rows: set[str] = set()
        self._differ = False

    def declare(self, names: Sequence[str]) -> None:
        """Add the names that a file declares, in order."""
        if names and self._declared and tuple(self._declared) != tuple(names):
            self._differ = True
        self._declared.update(dict.fromkeys(names))

    def add(self, label: int | str) -> None:
        """Add the label of a row."""
        if isinstance(label, str) and len(self._in_rows) <= BUDGET.classes:
            self._in_rows.add(label)

    def in_order(self, census: Census) -> tuple[str, ...]:
        """Declared names in the order of the files, then other names of rows; empty if none is declared."""
        if not self._declared:
            return ()
        if self._differ:
            census.decide(
                "the files declare different names of classes: they are matched by name, in the order of the "
                "files"
            )
        BUDGET.check("names of classes", classes=len(self._declared))
        return (*self._declared, *sorted(self._in_rows - self._declared.keys()))


def _splits(
    file: ParquetFile, chosen: ChosenColumns, path: str, group: int
) -> Iterator[Split | None]:
    """Split of each row of a group: by its column, else by the path of the file."""
    if chosen.split is None or not text_type(file.type_of(chosen.split)):
        declared = chosen.split_value
        split = split_in_path(path) if declared is None else split_named(declared)
        for _ in range(file.rows(group)):
            yield split
        return
    for chunk in file.column(chosen.split).read(group).chunks:
        if pa.types.is_dictionary(chunk.type):
            splits = [split_named(text or "") for text in texts(chunk.dictionary)]
            for position in chunk.indices.to_pylist():
                yield None if position is None else splits[position]
        else:
            for text in texts(chunk):
                yield split_named(text or "")


def _image_bytes(column: Any, row: int, path: str) -> Image:
    value = column[row].as_py() if row < len(column) else None
    if not isinstance(value, bytes):
        in_struct = path.endswith(".bytes")
        return Rejected(f"has no image bytes{'; paths are not followed' if in_struct else ''}")
    if len(value) > BUDGET.image_file_bytes:
        return Rejected(f"a file of {len(value)} bytes, more than {BUDGET.image_file_bytes}")
    return value
