"""Mutations of Parquet and safetensors files that keep the container whole."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.mutate import HOSTILE, mutate_tree, to_json

_NUMBERS = (0, -1, 1, 2**31, 2**32 - 1, 2**63 - 1, -(2**63), 511, 512, 10**12)
_FLOATS = (float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 0.0)
_TYPES = (
    pa.int8(),
    pa.int32(),
    pa.int64(),
    pa.uint64(),
    pa.float16(),
    pa.float32(),
    pa.float64(),
    pa.bool_(),
    pa.string(),
    pa.binary(),
    pa.large_string(),
    pa.timestamp("ns"),
    pa.decimal128(38, 2),
    pa.list_(pa.int64()),
    pa.dictionary(pa.int32(), pa.string()),
    pa.null(),
)


def mutate_parquet(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Change a value, a column, a type or the rows of a table."""
    table = pq.read_table(pa.BufferReader(data))
    notes = []
    for _ in range(rng.choice((1, 1, 2))):
        table, note = _mutate_table(table, rng)
        notes.append(note)
    sink = io.BytesIO()
    options: dict[str, Any] = {
        "compression": rng.choice(("zstd", "snappy", "none", "gzip")),
        "use_dictionary": rng.random() < 0.7,
    }
    if table.num_rows and rng.random() < 0.2:
        options["row_group_size"] = 1
    try:
        pq.write_table(table, sink, **options)
    except (pa.ArrowException, ValueError):
        return data, "nothing"
    return sink.getvalue(), "; ".join(notes)


def _mutate_table(table: pa.Table, rng: random.Random) -> tuple[pa.Table, str]:
    if not table.num_columns:
        return table, "nothing"
    number = rng.randrange(table.num_columns)
    name = table.column_names[number]
    kinds = ("value", "value", "value", "type", "null", "drop", "rename", "add", "rows", "order")
    kind = rng.choice((*kinds, "metadata", "constant", "chunks"))
    if kind in ("value", "null", "constant"):
        return _with_values(table, number, kind, rng), f"{kind} of {name}"
    if kind == "type":
        type_ = rng.choice(_TYPES)
        return _retyped(table, number, type_), f"{name} as {type_}"
    if kind == "drop":
        others = [other for other in range(table.num_columns) if other != number]
        return table.select(others), f"no {name}"
    if kind == "rename":
        names = list(table.column_names)
        names[number] = rng.choice(("x", "", names[0], name.upper()))
        return table.rename_columns(names), f"rename {name}"
    if kind == "add":
        column = pa.array([rng.choice(_FLOATS)] * table.num_rows)
        return table.append_column(rng.choice(("x", name, "")), column), "add a column"
    if kind == "rows":
        count = table.num_rows
        rows = rng.choice(
            ([], list(range(count)) * 2, list(range(count))[::-1], [0] * count, [0] * 5_000)
        )
        return table.take(pa.array(rows if count else [], pa.int64())), f"{len(rows)} rows"
    if kind == "order":
        numbers = list(range(table.num_columns))
        rng.shuffle(numbers)
        return table.select(numbers), "order of the columns"
    if kind == "metadata":
        return _other_metadata(table, rng)
    return pa.concat_tables([table.slice(0, 1)] * 3), "three times the first row"


def _with_values(table: pa.Table, number: int, kind: str, rng: random.Random) -> pa.Table:
    """A column with some other values of its own type."""
    field = table.schema.field(number)
    values = table.column(number).to_pylist()
    rows = range(len(values)) if kind == "constant" else [rng.randrange(len(values) or 1)]
    if pa.types.is_integer(field.type):
        new: Any = rng.choice(_NUMBERS)
    elif pa.types.is_floating(field.type):
        new = rng.choice(_FLOATS)
    else:
        new = rng.choice(("", "x" * 100_000, "../../etc/passwd", "\x00", "a.b/c", "\x1b[2J"))
        new = new.encode() if pa.types.is_binary(field.type) else new
    new = None if kind == "null" else new
    for row in rows:
        if row < len(values):
            values[row] = new
    try:
        column = pa.array(values, field.type)
    except (pa.ArrowException, OverflowError, TypeError):
        return table
    return table.set_column(
        number, pa.field(field.name, field.type, metadata=field.metadata), column
    )


def _retyped(table: pa.Table, number: int, type_: pa.DataType) -> pa.Table:
    name = table.column_names[number]
    try:
        column = table.column(number).cast(type_, safe=False)
    except (pa.ArrowException, NotImplementedError):
        column = pa.nulls(table.num_rows, type_)
    return table.set_column(number, name, column)


def _other_metadata(table: pa.Table, rng: random.Random) -> tuple[pa.Table, str]:
    """Other JSON in the table's own metadata."""
    metadata = dict(table.schema.metadata or {})
    key = next((key for key in metadata if key != b"ARROW:schema"), None)
    if key is None:
        return table, "nothing"
    try:
        tree, note = mutate_tree(json.loads(metadata[key]), rng)
        metadata[key] = to_json(tree)
    except ValueError:
        return table, "nothing"
    return table.replace_schema_metadata(metadata), f"metadata: {note}"


def parquet_bomb(data: bytes, rows: int = 24_000_000) -> bytes:
    """A small file of many rows: the first row, again and again."""
    first = pq.read_table(pa.BufferReader(data)).slice(0, 1)
    step = 1_000_000
    block = pa.table(
        [pa.repeat(column[0], step) for column in first.columns],
        schema=first.schema,
    )
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, first.schema, compression="zstd") as writer:
        for _ in range(rows // step):
            writer.write_table(block)
    return sink.getvalue()


_DTYPES = ("F16", "BF16", "F64", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "X", "", None)


def mutate_safetensors(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Change the header of a safetensors file, or its numbers."""
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    names = [name for name in header if name != "__metadata__"]
    kind = rng.choice(
        ("values", "dtype", "shape", "offsets", "tree", "drop", "add", "rename", "size")
    )
    if not names or kind == "tree":
        header, note = mutate_tree(header, rng)
        return _packed(to_json(header), body), f"header: {note}"
    name = rng.choice(names)
    entry = header[name]
    if kind == "values":
        begin, end = entry["data_offsets"]
        if entry["dtype"] == "F32" and end > begin:
            at = begin + 4 * rng.randrange((end - begin) // 4)
            value = rng.choice(_FLOATS)
            try:
                body[at : at + 4] = struct.pack("<f", value)
            except OverflowError:
                body[at : at + 4] = struct.pack("<f", 3e38)
        return _packed(json.dumps(header).encode(), body), f"values of {name}"
    if kind == "dtype":
        entry["dtype"] = rng.choice(_DTYPES)
        if rng.random() < 0.5 and entry["dtype"] in ("F16", "BF16", "I32"):
            entry["shape"] = _halved(entry, rng)
    elif kind == "shape":
        entry["shape"] = rng.choice(
            (
                [],
                [0],
                [-1],
                [10**18],
                [2**62, 4],
                [1, *entry["shape"]],
                entry["shape"][::-1],
                ["1"],
                None,
            )
        )
    elif kind == "offsets":
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = rng.choice(
            (
                [0, 0],
                [begin, end + 4],
                [begin - 4, end],
                [end, begin],
                [0, 2**62],
                [-1, end],
                [begin],
            )
        )
    elif kind == "drop":
        del header[name]
    elif kind == "add":
        header["x"] = copy.deepcopy(rng.choice((entry, *HOSTILE)))
    elif kind == "rename":
        header[name + "x"] = header.pop(name)
    else:
        wrong = rng.choice((0, size - 1, size + 1, 2**40, 2**63, 2**64 - 1))
        return struct.pack("<Q", wrong) + data[8:], "size of the header"
    return _packed(to_json(header), body), f"{kind} of {name}"


def _halved(entry: dict[str, Any], rng: random.Random) -> list[int]:
    shape = list(entry["shape"])
    if shape:
        shape[-1] *= rng.choice((1, 2))
    return shape


def _packed(header: bytes, body: bytes | bytearray) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(body)
