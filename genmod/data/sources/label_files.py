"""Which file next to the images of a folder contains their labels."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import NamedTuple

from genmod import storage
from genmod.budget import BUDGET
from genmod.data.sources.census import Census
from genmod.data.sources.config import SourceOptions
from genmod.data.sources.folder_classes import FOLDER
from genmod.data.sources.label_rows import LabelTable
from genmod.data.sources.label_table import (
    STYLEGAN,
    Columns,
    columns_of,
    is_stylegan,
    read_labels,
)
from genmod.data.sources.labels import LabelKinds
from genmod.data.sources.names import extension_of, is_hidden, split_of_folder
from genmod.data.sources.source import NO_LABEL
from genmod.data.sources.split_names import report_splits, split_words
from genmod.errors import ConfigError, DataError, sanitize
from genmod.manifest import Split

_TABLES = ("csv", "tsv", "jsonl")
_MAX_TABLES = 50
"""Tables whose columns are looked at."""

_HEADER_BYTES = 1 << 16


class _Candidate(NamedTuple):
    """A file that may contain labels."""

    folder: str
    """Its folder, with a slash at the end; empty for the top."""
    name: str
    columns: Columns | None
    """None of dataset.json."""

    @property
    def path(self) -> str:
        return self.folder + self.name

    @property
    def split(self) -> Split | None:
        return split_words(posixpath.splitext(self.name)[0])[0]

    @property
    def choice(self) -> str:
        """``data.label`` that chooses it."""
        if self.columns is None:
            return self.path
        return f"{self.path}:{self.columns.labels[0]}"


class LabelFiles:
    """Labels of the images of a folder from one or several files."""

    def __init__(self, source: str, where: str, options: SourceOptions, census: Census) -> None:
        """Find and read the files that the recipe names, or the only ones that can be meant.

        Raises:
            ConfigError: several files or columns could be meant.
            DataError: a file cannot be read.
        """
        self._source, self._where, self._census = source, where, census
        self._kinds = LabelKinds(source)
        self._tables: list[tuple[str, Split | None, LabelTable]] = []
        """Folder of the file, split that its name declares, rows."""
        self._is_wanted = options.labels
        self._is_chosen = options.label not in (None, FOLDER) or not options.labels
        self._folders: dict[str, None] = {}
        self._differs = ""
        self._counts = [0, 0]
        """Images without and with a row."""
        self._splits: set[Split | None] = set()
        """Splits that rows declare."""
        self._disputed = 0
        """Images whose folder or file of labels declares another split than their row."""
        if options.label not in (None, FOLDER):
            name, _, column = options.label.rpartition(":")
            if not name or column.startswith("//"):
                name, column = options.label, ""
            url = name if "://" in name or name.startswith("/") else storage.join(where, name)
            table = read_labels(name, url, column or None)
            is_below = url != name
            folder = posixpath.dirname(name) + "/" if is_below and "/" in name else ""
            self._tables.append((folder, None, table))
        elif options.label is None:
            for found, split in self._find():
                has_splits = found.columns is not None and found.columns.split is not None
                if not (options.labels or split is not None or has_splits):
                    continue
                table = read_labels(found.path, storage.join(where, found.path), None)
                self._is_chosen |= found.columns is None
                self._tables.append((found.folder, split, table))
        self._is_empty = len(self._tables) == 1 and len(self._tables[0][2]) == 0

    def __bool__(self) -> bool:
        return bool(self._tables)

    def __contains__(self, path: str) -> bool:
        names = [table.name for _, _, table in self._tables]
        return bool(names) and (path in names or storage.join(self._where, path) in names)

    def _find(self) -> Iterator[tuple[_Candidate, Split | None]]:
        """The files whose labels are used."""
        found = list(self._candidates())
        tables = [one for one in found if one.columns is not None]
        others = [one for one in found if one.columns is None]
        by_folder = {one.folder for one in tables}
        is_by_split = len(tables) > 1 and (
            None not in {one.split for one in tables}
            and len({one.split for one in tables}) == len(tables)
            and len(by_folder) == 1
        )
        is_one_each = len(by_folder) == len(tables) and "" not in by_folder
        if len(others) + len(tables) > 1 and (others or not (is_by_split or is_one_each)):
            if not self._is_wanted:
                return
            choices = ", ".join(f"data.label={one.choice}" for one in found[:5])
            raise ConfigError(
                f"{self._source}: several files may contain the labels; set one of {sanitize(choices)}, or "
                "data.label=folder for the names of folders"
            )
        for one in found:
            yield one, one.split if is_by_split else None

    def _candidates(self) -> Iterator[_Candidate]:
        names = storage.list_names(self._where)
        folders = ["", *(f"{name}/" for name in names if split_of_folder(name) and "." not in name)]
        looked = 0
        for folder in folders:
            inside = storage.list_names(storage.join(self._where, folder)) if folder else names
            for name in inside:
                if is_hidden(name) or not (extension_of(name) in _TABLES or name == STYLEGAN):
                    continue
                url = storage.join(self._where, folder + name)
                looked += 1
                if looked > _MAX_TABLES or not self._is_file(url):
                    continue
                if name == STYLEGAN:
                    size_bytes = storage.size_bytes(url)
                    if size_bytes <= BUDGET.document_bytes and is_stylegan(storage.read_bytes(url)):
                        yield _Candidate(folder, name, None)
                    continue
                (start,) = storage.read_ranges(url, [0], [_HEADER_BYTES])
                if (columns := columns_of(name, start)) is not None:
                    yield _Candidate(folder, name, columns)

    def _is_file(self, url: str) -> bool:
        fs, path = storage.filesystem(url)
        return bool(fs.isfile(path))

    def place(
        self, name: str, folder_label: int | str, split: Split | None
    ) -> tuple[int | str, Split | None]:
        """Label and split of an image.

        Args:
            name: path of the image.
            folder_label: name of its folder, if that may be a class.
            split: that its folders declare.

        Raises:
            DataError: labels of the file and names of folders differ, and either could be meant.
        """
        label, row_split = self._find_row(name, split)
        self._counts[label is not None] += 1
        self._splits.add(row_split)
        if None not in (split, row_split) and split != row_split:
            self._disputed += 1
            split = None
        else:
            split = split or row_split
        if label is None:
            return NO_LABEL, split
        if self._is_wanted:
            self._kinds.check(label, name)
        if not self._is_chosen and isinstance(folder_label, str):
            self._folders.setdefault(folder_label)
            if str(label) != folder_label:
                self._differs = self._differs or name
            if self._differs and len(self._folders) > 1:
                raise self._unclear()
        return label, split

    def _find_row(self, name: str, split: Split | None) -> tuple[int | str | None, Split | None]:
        found: list[tuple[int | str, Split | None, str]] = []
        for folder, table_split, table in self._tables:
            is_other = None not in (split, table_split) and split != table_split
            if is_other or not name.startswith(folder):
                continue
            above = posixpath.join(self._where, folder).rstrip("/")
            row = table.find(name.removeprefix(folder), above)
            if row is not None:
                found.append((row[0], row[1] or table_split, table.name))
        if len(found) > 1:
            raise DataError(
                f"{self._source}: {sanitize(name)[:200]} has a row in {found[0][2]} and in {found[1][2]}; "
                "remove one"
            )
        return found[0][:2] if found else (None, None)

    def _unclear(self) -> DataError:
        table = self._tables[0][2].name
        return DataError(
            f"{self._source}: {sanitize(table)} gives {sanitize(self._differs)[:200]} another label than the "
            f"name of its folder; set data.label={sanitize(table)} or data.label=folder"
        )

    def report(self) -> None:
        """Add to the census what was decided. DataError if no image has a row."""
        tables = [table for _, _, table in self._tables]
        names = ", ".join(sanitize(table.name) for table in tables)
        if self._is_empty:
            self._census.decide(f"{names} declares no labels: data without labels")
            return
        if not tables:
            return
        without, with_row = self._counts
        if not with_row and self._is_wanted:
            first = next(iter(tables[0].without_image()), "")
            raise DataError(
                f"{self._source}: no image has a row in {names} (the first row is {sanitize(first)[:80]!r}); "
                "write paths relative to the file, or set data.label=folder"
            )
        if self._is_wanted:
            self._census.decide(
                f"labels are read from {names}; data.label=folder takes the names of folders"
            )
        report_splits(self._census, self._splits, f"rows of {names}")
        if self._disputed:
            self._census.decide(
                f"{self._disputed} images are in the folder of another split than their row of {names} "
                "declares: no split that data.splits=source could keep"
            )
        if without and self._is_wanted:
            self._census.decide(f"{without} images have no row in {names}: no label")
        for table in tables:
            for name in table.without_image():
                self._census.pass_over(
                    f"rows of {sanitize(table.name)[:80]} without an image", name
                )
