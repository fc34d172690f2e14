"""Labels in a column of a table, read as their writer meant them: numbers or names of classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from typing import Any

import pyarrow as pa
import pyarrow.compute

from genmod.data.sources.columns import ChosenColumns
from genmod.data.sources.parquet_file import ParquetColumn, ParquetFile, is_list_type, texts
from genmod.data.sources.source import (
    BAD_LABEL,
    BAD_TEXT,
    FRACTION,
    NO_LABEL,
    SEVERAL_LABELS,
    UNNAMED,
)
from genmod.errors import DataError, sanitize

_pc: Any = pyarrow.compute

_MAX_LABEL = (1 << 31) - 1

_BOOLEANS = ("false", "true")
"""Names of the classes of a column of booleans."""

_TEXT_TYPES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)


class LabelColumn:
    """Labels of the rows of one file, by row group."""

    def __init__(self, file: ParquetFile, chosen: ChosenColumns) -> None:
        """Check the type of the chosen column. Raises DataError."""
        self._file = file
        self._constant = chosen.label_value
        self._column: ParquetColumn | None = None
        self.declared: tuple[str, ...] = ()
        """Names of classes that the file declares, in order; complete after a group is read."""
        self.kind: str | None = "no label column"
        """What the labels are, in the plural; None if all are missing, which agrees with any kind."""
        self._numbered: tuple[str, ...] = ()
        self._categories = chosen.categories
        if self._constant is not None:
            self.kind = "class names"
        elif chosen.label is not None:
            self._column = file.column(chosen.label, lists=True)
            self.kind = _kind(file.url, self._column)
            self.declared = chosen.class_names
            if self.kind == "integer labels" and self.declared:
                self.kind, self._numbered = "class names", self.declared
            elif _is_boolean(self._column):
                self.declared = _BOOLEANS

    def read(self, group: int) -> Iterator[int | str]:
        """Labels of the rows of a group: numbers, names, or a key of ``LABEL_REASONS``."""
        if self._column is None:
            constant = NO_LABEL if self._constant is None else self._constant
            yield from repeat(constant, self._file.rows(group))
            return
        for chunk in self._column.read(group).chunks:
            if self._categories and pa.types.is_dictionary(chunk.type):
                # A column that has too many values for a dictionary has lost the order of its categories.
                names = texts(chunk.dictionary)
                if len(names) == self._categories:
                    declared = dict.fromkeys([*self.declared, *filter(None, names)])
                    self.declared = tuple(declared)
            yield from self._labels(chunk)

    def _labels(self, chunk: Any) -> Iterator[int | str]:
        if not is_list_type(chunk.type):
            yield from map(self._named, _values(chunk))
            return
        # Lists: the values of those that have one.
        lengths = _pc.list_value_length(chunk)
        values = map(self._named, _values(chunk.filter(_pc.equal(lengths, 1)).flatten()))
        for length in lengths.to_pylist():
            yield next(values) if length == 1 else SEVERAL_LABELS if length else NO_LABEL

    def _named(self, label: int | str) -> int | str:
        """The name of a class number, where the file declares names."""
        if not self._numbered or isinstance(label, str) or label < 0:
            return label
        return self._numbered[label] if label < len(self._numbered) else UNNAMED


def _element(kind: Any) -> Any:
    """The type of the values of lists, dictionaries and extensions."""
    while True:
        if is_list_type(kind) or pa.types.is_dictionary(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        else:
            return kind


def _is_boolean(column: ParquetColumn) -> bool:
    return pa.types.is_boolean(_element(column.type))


def _kind(url: str, column: ParquetColumn) -> str | None:
    kind = _element(column.type)
    if pa.types.is_null(kind):
        return None
    if pa.types.is_boolean(kind) or any(is_text(kind) for is_text in _TEXT_TYPES):
        return "class names"
    if any(is_number(kind) for is_number in _READERS):
        return "integer labels"
    raise DataError(
        f"{url}: column {sanitize(column.path)[:80]}: labels are {sanitize(str(column.type))[:80]}, expected "
        "integers or texts; choose another column with data.label"
    )


def _values(array: Any) -> Iterator[int | str]:
    """Labels of an array without lists."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        # Texts: look each one up by its number.
        values = list(_values(array.dictionary))
        for position in array.indices.to_pylist():
            yield NO_LABEL if position is None else values[position]
    elif any(is_text(array.type) for is_text in _TEXT_TYPES):
        for is_valid, text in zip(array.is_valid().to_pylist(), texts(array), strict=True):
            yield _text_label(text) if is_valid else NO_LABEL
    elif pa.types.is_null(array.type):
        yield from repeat(NO_LABEL, len(array))
    elif pa.types.is_boolean(array.type):
        for value in array.to_pylist():
            yield NO_LABEL if value is None else _BOOLEANS[value]
    else:
        read = next(read for is_type, read in _READERS.items() if is_type(array.type))
        for value in array.to_pylist():
            yield NO_LABEL if value is None else read(value)


def _text_label(text: str | None) -> int | str:
    """The name of a class; an empty text is no label, as in a CSV file."""
    if text is None:
        return BAD_TEXT
    return text if text.strip() else NO_LABEL


def _class_of(value: int) -> int:
    return value if NO_LABEL <= value <= _MAX_LABEL else BAD_LABEL


def _whole(value: Any) -> int:
    """The class of a number that may have a fraction; a missing one is no label."""
    if math.isnan(value):
        return NO_LABEL
    return FRACTION if math.isinf(value) or value != value // 1 else _class_of(int(value))


_READERS: Mapping[Callable[[Any], bool], Callable[[Any], int]] = {
    pa.types.is_integer: _class_of,
    pa.types.is_floating: _whole,
    pa.types.is_decimal: _whole,
}
"""How numbers become labels, by the test of their type."""
