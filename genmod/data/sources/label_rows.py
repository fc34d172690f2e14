"""Rows of a file with labels, found by the name of an image."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from genmod.budget import BUDGET
from genmod.data.sources.source import SEVERAL_LABELS
from genmod.errors import DataError, sanitize
from genmod.manifest import Split

LABELS_REMEDY = "correct the file, or set data.label=folder"
"""What to do about a file of labels that cannot be read."""

_SHOWN = 60


class LabelRow(NamedTuple):
    """One row of a file with labels."""

    file: str
    """Name or path of the image."""
    label: int | str
    split: Split | None = None
    """Split that the row declares; None if it declares none."""


def composed(name: str) -> str:
    """A name with its characters in composed Unicode form.

    >>> composed("ka\u0308se") == "k\u00e4se"
    True
    """
    return name if name.isascii() else unicodedata.normalize("NFC", name)


class LabelTable:
    """Labels and splits by the name of an image, from one file.

    Names of equal Unicode form are the same name: one system writes an umlaut as one character, others
    as two.
    """

    def __init__(self, name: str, rows: Iterable[LabelRow]) -> None:
        """Keep the rows of a file.

        Args:
            name: path of the file below the source, or its URL.
            rows: of the file.

        Raises:
            DataError: too many rows.
        """
        self.name = name
        self._numbers: dict[str, int] = {}
        self._labels: list[int | str] = []
        self._splits: list[Split | None] = []
        self._has_paths = False
        for file, label, split in rows:
            key = composed(file.replace("\\", "/").removeprefix("./").strip())
            number = self._numbers.setdefault(key, len(self._labels))
            if number < len(self._labels):
                if self._labels[number] != label:
                    self._labels[number] = SEVERAL_LABELS
                if self._splits[number] != split:
                    self._splits[number] = None
                continue
            BUDGET.check(sanitize(name), LABELS_REMEDY, label_rows=number)
            self._labels.append(label)
            self._splits.append(split)
            self._has_paths |= "/" in key
        self._images: list[str | None] = [None] * len(self._labels)

    def __len__(self) -> int:
        return len(self._labels)

    def find(self, path: str, above: str) -> tuple[int | str, Split | None] | None:
        """Label and split of an image; None if no row has its name.

        A row's name is the path below the file's folder, with or without extension, or just the file name if
        the file contains no paths.

        Args:
            path: of the image, relative to the folder of this file.
            above: path of that folder, for rows with longer paths.

        Raises:
            DataError: a row fits two images.
        """
        names = [composed(path)]
        if not self._has_paths:
            names.append(posixpath.basename(names[0]))
        else:
            names += [f"{posixpath.basename(above)}/{names[0]}", f"{above}/{names[0]}"]
        for name in names:
            for key in (name, posixpath.splitext(name)[0]):
                number = self._numbers.get(key)
                if number is None:
                    continue
                other = self._images[number]
                if other is not None and other != path:
                    raise DataError(
                        f"{sanitize(self.name)}: the row {sanitize(key)[:_SHOWN]} fits "
                        f"{sanitize(other)[:_SHOWN]} and {sanitize(path)[:_SHOWN]}; write paths relative to "
                        "the file"
                    )
                self._images[number] = path
                return self._labels[number], self._splits[number]
        return None

    def without_image(self) -> Iterator[str]:
        """Names of the rows that no image has been found for."""
        for name, number in self._numbers.items():
            if self._images[number] is None:
                yield name
