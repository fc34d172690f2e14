"""The one reader of Parquet that another process, another machine or another user may have written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genmod.budget import BUDGET, ReadBudget
from genmod.errors import DataError, sanitize
from genmod.parquet_layout import check_footer, footer_bytes, read_pages

pc: Any = pyarrow.compute  # its functions are made at import, so no type checker knows them


def read_table(
    data: bytes,
    where: str,
    schema: Any,
    rows: int | None = None,
    *,
    columns: Sequence[str] | None = None,
    others: bool = False,
    budget: ReadBudget = BUDGET,
) -> Any:
    """A Parquet file as a pyarrow table with exactly the types of ``schema``.

    Args:
        data: the file.
        where: name of the file; errors start with it.
        schema: pyarrow schema of the columns; a field that is not nullable has no nulls, and floating-point
            numbers are finite.
        rows: expected number of rows; None: any number within the budget.
        columns: read only these columns of ``schema``.
        others: also read columns that ``schema`` lacks; they must be finite float64 without nulls.
        budget: limits of rows and decoded bytes.

    Raises:
        DataError: the file is damaged, or another table than expected.
    """
    try:
        size_bytes = footer_bytes(data[-8:])
        check_footer(data[max(0, len(data) - 8 - size_bytes) : -8])
        file = pq.ParquetFile(pa.BufferReader(data))
        found = file.schema_arrow
        fields = [schema.field(name) for name in columns or schema.names]
        for field in fields:
            _check_type(found, field, where)
        if others:
            fields += [
                pa.field(name, pa.float64(), nullable=False)
                for name in found.names
                if name not in schema.names
            ]
            for field in fields[len(schema.names) :]:
                _check_type(found, field, where)
        count = file.metadata.num_rows
        if rows is not None and count != rows:
            raise DataError(f"{where}: {count} rows, expected {rows}")
        budget.check(where, shard_rows=count)
        _check_declared_bytes(file, fields, where, budget)
        _check_pages(file, fields, data, where, budget)
        table = _decode(file, fields, data)
        parts = {field.name: _as_text(table[field.name], where, budget) for field in fields}
        table = pa.table(parts)
        table.validate(full=True)
    except DataError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError, OverflowError) as error:
        reason = sanitize((str(error).splitlines() or [type(error).__name__])[0])[:160]
        raise DataError(f"{where} is not a readable Parquet file ({reason})") from None
    if table.num_rows != count:
        raise DataError(f"{where}: contains {table.num_rows} rows, declares {count}")
    for field in fields:
        _check_values(table[field.name], field, where)
    return table


def numbers(column: Any, missing: int = -1) -> NDArray[Any]:
    """A column of integers or, without nulls, floats as an array; nulls become ``missing``.

    pyarrow's own conversion imports pandas, which takes 0.2 s in each process.
    """
    if column.null_count == len(column) > 0:
        return np.full(len(column), missing, np.dtype(str(column.type)))
    if column.null_count:
        column = column.fill_null(missing)
    return np.from_dlpack(column.combine_chunks())


def _check_type(found: Any, field: Any, where: str) -> None:
    if found.names.count(field.name) != 1:
        names = sanitize(", ".join(found.names))[:160]
        raise DataError(f"{where}: no single column {field.name}; its columns: {names or 'none'}")
    got = found.field(field.name).type
    if got != field.type:
        raise DataError(f"{where}: column {field.name} is {got}, expected {field.type}")


def _check_declared_bytes(file: Any, fields: Sequence[Any], where: str, budget: ReadBudget) -> None:
    """Check the size of the columns that the file declares, and the one that its rows need."""
    metadata = file.metadata
    names = {field.name for field in fields}
    declared = 0
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if column.path_in_schema in names:
                declared += max(0, column.total_uncompressed_size)
    widths = sum(_width(field.type) for field in fields)
    budget.check(where, table_bytes=max(declared, widths * metadata.num_rows))


def _check_pages(
    file: Any, fields: Sequence[Any], data: bytes, where: str, budget: ReadBudget
) -> None:
    """Check the size to which the pages of the columns decompress, which the footer may not tell."""
    names = {field.name for field in fields}
    size_bytes = 0
    for group in range(file.metadata.num_row_groups):
        declared = file.metadata.row_group(group)
        for number in range(declared.num_columns):
            column = declared.column(number)
            if column.path_in_schema in names:
                start = column.data_page_offset
                if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
                    start = column.dictionary_page_offset
                end = start + column.total_compressed_size
                size_bytes += read_pages(memoryview(data)[start:end]).size_bytes
    budget.check(where, table_bytes=size_bytes)


def _width(kind: Any) -> int:
    """Bytes of a value, or of a text's offset."""
    try:
        return max(1, kind.bit_width // 8)
    except ValueError:
        return 4


_ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED", "PLAIN_DICTIONARY", "RLE_DICTIONARY"}
"""Encodings whose decoded size is known before they are decoded; genmod writes no others."""


def _decode(file: Any, fields: Sequence[Any], data: bytes) -> Any:
    """Decode the columns; texts that a dictionary repeats are counted before they are copied."""
    names = [field.name for field in fields]
    texts: set[str] = set()
    metadata = file.metadata
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if column.path_in_schema in names:
                if not set(column.encodings) <= _ENCODINGS:
                    raise ValueError(f"unsupported encoding {column.encodings}")
                if column.physical_type == "BYTE_ARRAY":
                    texts.add(column.path_in_schema)
    if texts:  # all of them: pages may have other encodings than the footer declares
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=sorted(texts))
    return file.read(names, use_threads=False).select(names)


def _check_values(column: Any, field: Any, where: str) -> None:
    if not field.nullable and column.null_count:
        raise DataError(f"{where}: column {field.name} is empty in {column.null_count} rows")
    if pa.types.is_floating(field.type) and pc.all(pc.is_finite(column)).as_py() is False:
        raise DataError(f"{where}: column {field.name} has a value that is not finite")


def _as_text(column: Any, where: str, budget: ReadBudget) -> Any:
    """A column of texts without its dictionary; the size is checked before it is copied."""
    if not pa.types.is_dictionary(column.type):
        return column
    size_bytes = 0
    for chunk in column.chunks:
        lengths = pc.take(pc.binary_length(chunk.dictionary), chunk.indices)
        size_bytes += pc.sum(pc.cast(lengths, pa.int64())).as_py() or 0
    budget.check(where, table_bytes=size_bytes)
    return pc.cast(column, pa.string())
