"""What a Parquet file declares: the schema in its footer, and the pages of a column.

pyarrow recurses into the schema without a limit, and decompresses each page to the size that its header says,
so both are read here before. The format is the compact protocol of Thrift, with the structures of
parquet.thrift.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from genmod.budget import BUDGET

MAX_FOOTER_BYTES = 16 << 20
"""Bytes of a footer; a column of a row group takes about 100."""

MAX_FIELDS = 10_000
"""Columns of a table, with their groups."""

_MAX_DEPTH = 32
"""Depth of Thrift structures."""

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_WIDTHS = {_TRUE: 0, _FALSE: 0, _BYTE: 1, _DOUBLE: 8}

_OPTIONAL, _REPEATED = 1, 2
_BYTE_ARRAY = 6
_COLUMN_METADATA, _CRYPTO_METADATA, _SIZE_STATISTICS = 3, 8, 16
"""Types and numbers of fields of parquet.thrift."""

_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_2 = 0, 2, 3
_HEADERS = {_DATA_PAGE: 5, _DICTIONARY_PAGE: 7, _DATA_PAGE_2: 8}
"""Number of the field with the header of each type of page."""

_DELTA_BYTE_ARRAY = 7
"""An encoding whose values repeat the value before, so that their size is not known."""


class _Reader:
    """Reads values of the compact protocol. Raises ValueError at the end of the data."""

    def __init__(self, data: bytes | memoryview, at: int = 0) -> None:
        self.data, self.at = data, at

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise ValueError("truncated metadata")
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        value, shift = 0, 0
        while shift < 70:
            part = self.byte()
            value |= (part & 127) << shift
            if part < 128:
                return value
            shift += 7
        raise ValueError("a number is too large")

    def number(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def advance(self, count: int) -> None:
        if count > len(self.data) - self.at:
            raise ValueError("truncated metadata")
        self.at += count

    def fields(self) -> Iterator[tuple[int, int]]:
        """(number, type) of the fields of a structure; the caller reads or skips each value."""
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.number()
            yield number, head & 15

    def length(self) -> tuple[int, int]:
        """(count, type) of the elements of a list."""
        head = self.byte()
        count = head >> 4
        return (self.varint() if count == 15 else count), head & 15

    def skip(self, kind: int, depth: int = 0, in_list: bool = False) -> None:
        """Skip a value."""
        if depth > _MAX_DEPTH:
            raise ValueError("metadata with too many levels")
        if kind in (_I16, _I32, _I64):
            self.varint()
        elif kind in _WIDTHS:
            self.advance(in_list if kind in (_TRUE, _FALSE) else _WIDTHS[kind])
        elif kind == _BINARY:
            self.advance(self.varint())
        elif kind == _STRUCT:
            for _, field in self.fields():
                self.skip(field, depth + 1)
        elif kind in (_LIST, _SET, _MAP):
            self._skip_elements(kind, depth + 1)
        else:
            raise ValueError(f"unknown type {kind} in the metadata")

    def _skip_elements(self, kind: int, depth: int) -> None:
        if kind == _MAP:
            count = self.varint()
            kinds = self.byte() if count else 0
            elements = [kinds >> 4, kinds & 15]
        else:
            count, element = self.length()
            elements = [element]
        for _ in range(count):
            for element in elements:
                self.skip(element, depth, in_list=True)


def footer_bytes(tail: bytes) -> int:
    """Bytes of the footer, from the last 8 bytes of a file. Raises ValueError."""
    if len(tail) != 8 or tail[4:] != b"PAR1":
        raise ValueError("no footer of Parquet at its end")
    size_bytes = int.from_bytes(tail[:4], "little")
    if size_bytes > MAX_FOOTER_BYTES:
        raise ValueError(f"a footer of {size_bytes} bytes, more than {MAX_FOOTER_BYTES}")
    return size_bytes


class _Leaf(NamedTuple):
    """A column of values, with its levels as the schema declares them."""

    physical_type: int
    repetition: int
    definition: int


def check_footer(footer: bytes | memoryview) -> None:
    """Check what ends the process of pyarrow: deep schemas, columns that contradict it. Raises ValueError."""
    reader = _Reader(footer)
    leaves: list[_Leaf] | None = None
    for number, kind in reader.fields():
        if number == 2 and kind in (_LIST, _SET):
            leaves = _check_schema(reader)
        elif number == 4 and kind in (_LIST, _SET):
            _check_row_groups(reader, leaves)
        else:
            reader.skip(kind)


def _check_schema(reader: _Reader) -> list[_Leaf]:
    """Check a list of fields, which is a tree in the order of depth first; return its leaves."""
    count, kind = reader.length()
    if count > MAX_FIELDS or kind != _STRUCT:
        raise ValueError(f"a schema of {count} fields, more than {MAX_FIELDS}")
    leaves: list[_Leaf] = []
    # Groups that are open: number of fields that follow, and levels.
    groups: list[tuple[int, int, int]] = []
    for position in range(count):
        declared: dict[int, int] = {}
        for number, field in reader.fields():
            if number in (1, 3, 5) and field == _I32:
                declared[number] = reader.number()
            else:
                reader.skip(field)
        physical_type, repeated, children = (declared.get(number, -1) for number in (1, 3, 5))
        while groups and groups[-1][0] <= 0:
            groups.pop()
        _, repetition, definition = groups[-1] if groups else (0, 0, 0)
        if groups:
            groups[-1] = (groups[-1][0] - 1, repetition, definition)
        if position:  # the root has no levels
            repetition += repeated == _REPEATED
            definition += repeated in (_OPTIONAL, _REPEATED)
        if children > 0:
            groups.append((children, repetition, definition))
        elif physical_type >= 0:
            leaves.append(_Leaf(physical_type, repetition, definition))
        if len(groups) > BUDGET.nesting:
            raise ValueError(f"a schema of more than {BUDGET.nesting} levels")
    return leaves


def _structures(reader: _Reader) -> range:
    """Numbers of the elements of a list of structures."""
    count, kind = reader.length()
    if count and kind != _STRUCT:
        raise ValueError("a list of the wrong type in the metadata")
    return range(count)


def _check_row_groups(reader: _Reader, leaves: list[_Leaf] | None) -> None:
    """Check the columns of all row groups: an error in one ends the process of pyarrow."""
    if leaves is None:
        raise ValueError("row groups in front of the schema")
    for _ in _structures(reader):
        for number, kind in reader.fields():
            if number != 1 or kind not in (_LIST, _SET):
                reader.skip(kind)
                continue
            columns = _structures(reader)
            if len(columns) != len(leaves):
                raise ValueError(
                    f"a row group of {len(columns)} columns, the schema has {len(leaves)}"
                )
            for column in columns:
                _check_column(reader, leaves[column])


def _check_column(reader: _Reader, leaf: _Leaf) -> None:
    for number, kind in reader.fields():
        if number == _CRYPTO_METADATA:
            raise ValueError("an encrypted column")
        if number != _COLUMN_METADATA or kind != _STRUCT:
            reader.skip(kind)
            continue
        for field, field_kind in reader.fields():
            if field == _SIZE_STATISTICS and field_kind == _STRUCT:
                _check_size_statistics(reader, leaf)
            else:
                reader.skip(field_kind)


def _check_size_statistics(reader: _Reader, leaf: _Leaf) -> None:
    levels = {2: leaf.repetition, 3: leaf.definition}
    for number, kind in reader.fields():
        if number == 1 and leaf.physical_type != _BYTE_ARRAY:
            raise ValueError("sizes of texts in a column of another type")
        if number not in levels or kind not in (_LIST, _SET):
            reader.skip(kind)
            continue
        count, element = reader.length()
        if count and (element != _I64 or count != levels[number] + 1):
            raise ValueError(f"counts of {count} levels in a column of {levels[number] + 1}")
        for _ in range(count):
            reader.varint()


@dataclass
class Pages:
    """What the pages of a column declare, in sum."""

    size_bytes: int = 0
    """Bytes after decompression."""
    values: int = 0


def read_pages(column: bytes | memoryview) -> Pages:
    """Sum up the headers of all pages of a column of a row group.

    Raises:
        ValueError: a header is damaged, or a page has an encoding whose decoded size is not known.
    """
    pages, reader = Pages(), _Reader(column)
    while reader.at < len(column):
        declared: dict[int, int] = {}
        values: dict[int, int] = {}
        for number, field in reader.fields():
            if number in (1, 2, 3) and field == _I32:
                declared[number] = reader.number()
            elif number in _HEADERS.values() and field == _STRUCT:
                values[number] = _page_values(reader, 4 if number == _HEADERS[_DATA_PAGE_2] else 2)
            else:
                reader.skip(field)
        kind, unpacked, packed = (declared.get(number, -1) for number in (1, 2, 3))
        count = values.get(_HEADERS.get(kind, 0), 0)
        if kind < 0 or unpacked < 0 or packed < 0 or count < 0:
            raise ValueError("a page without a size")
        reader.advance(packed)
        pages.size_bytes += unpacked
        if kind != _DICTIONARY_PAGE:
            pages.values += count
    return pages


def _page_values(reader: _Reader, encoding_field: int) -> int:
    """Number of values of a page."""
    values = -1
    for number, field in reader.fields():
        if number == 1 and field == _I32:
            values = reader.number()
        elif number == encoding_field and field == _I32:
            if reader.number() == _DELTA_BYTE_ARRAY:
                raise ValueError("the encoding DELTA_BYTE_ARRAY is not supported; use PLAIN")
        else:
            reader.skip(field)
    return values
