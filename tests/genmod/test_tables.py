"""Foreign Parquet: the expected columns, types and rows, or one error."""

import subprocess
import sys
import tempfile
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genmod.errors import DataError
from genmod.tables import numbers, read_table

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("nats", pa.float64()),
    ]
)


def file(columns=None, **options):
    columns = {"key": ["a", "b"], "n": [1, 2], "nats": [0.5, None]} | (columns or {})
    table = pa.table({name: values for name, values in columns.items() if values is not None})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def test_a_table_has_the_columns_of_its_schema():
    table = read_table(file(), "t", SCHEMA, 2)
    assert table.to_pydict() == {"key": ["a", "b"], "n": [1, 2], "nats": [0.5, None]}
    assert read_table(file(), "t", SCHEMA, columns=["n"]).to_pydict() == {"n": [1, 2]}
    more = read_table(file({"z": [0.1, 0.2]}), "t", SCHEMA, others=True)
    assert more.column_names == ["key", "n", "nats", "z"]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"n": None}, "no single column n; its columns: key, nats"),
        ({"n": [1.0, 2.0]}, "column n is double, expected int64"),
        ({"n": [1, None]}, "column n is empty in 1 rows"),
        ({"key": [1, 2]}, "column key is int64, expected string"),
        ({"nats": [0.5, float("nan")]}, "column nats has a value that is not finite"),
        ({"nats": [0.5, float("-inf")]}, "column nats has a value that is not finite"),
        ({"z": ["x", "y"]}, "column z is string, expected double"),
        ({"key": [["a"], ["b"]]}, "column key is list"),
    ],
)
def test_other_columns_are_refused(columns, reason):
    with pytest.raises(DataError, match=f"^t: .*{reason}"):
        read_table(file(columns), "t", SCHEMA, others=True)


def test_other_numbers_of_rows_are_refused():
    with pytest.raises(DataError, match="t: 2 rows, expected 3"):
        read_table(file(), "t", SCHEMA, 3)


def test_a_text_that_a_dictionary_repeats_is_counted_before_it_is_copied():
    rows = 1_000_000
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["x" * 10_000])
    data = file({"key": repeated, "n": range(rows), "nats": None}, store_schema=False)
    assert len(data) < 10_000_000
    with pytest.raises(DataError, match="10,000,000,000 bytes, more than the limit"):
        read_table(data, "t", SCHEMA, columns=["key"])


def test_a_footer_that_hides_a_dictionary_does_not_help():
    rows = 1_000_000
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["x" * 10_000])
    data = file({"key": repeated, "n": range(rows), "nats": None}, store_schema=False)
    plain, rle, dictionary = 0, 6, 16  # in the list of encodings of the column
    data = data.replace(
        bytes((0x35, plain, rle, dictionary)), bytes((0x35, plain, plain, plain)), 1
    )
    column = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(0)
    assert set(column.encodings) == {"PLAIN"}
    with pytest.raises(DataError, match="10,000,000,000 bytes, more than the limit"):
        read_table(data, "t", SCHEMA, columns=["key"])


def test_a_text_that_prefixes_repeat_is_refused():
    keys = ["x" * length for length in range(2)]
    data = file({"key": keys}, use_dictionary=False, column_encoding={"key": "DELTA_BYTE_ARRAY"})
    with pytest.raises(DataError, match="DELTA_BYTE_ARRAY is not supported"):
        read_table(data, "t", SCHEMA)


def test_a_damaged_file_is_one_error():
    data = file()
    for at in range(0, len(data), 3):
        for damaged in (data[:at], data[:at] + b"\xff" + data[at + 1 :]):
            with suppress(DataError):  # some bytes do not matter
                read_table(damaged, "t", SCHEMA)
    with pytest.raises(DataError, match="t is not a readable Parquet file"):
        read_table(data[:-1], "t", SCHEMA)


def test_numbers_are_the_columns_values_without_pandas():
    """In a process of its own, since other tests import pandas."""
    program = """
import sys, io
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from genmod.tables import numbers, read_table
schema = pa.schema([pa.field("a", pa.int64(), nullable=False), pa.field("b", pa.int32())])
table = read_table(open(sys.argv[1], "rb").read(), "t", schema)
assert numbers(table["a"]).tolist() == [3, 1 << 40, -1]
assert numbers(table["b"]).tolist() == [-1, -1, -1]
assert numbers(table["b"]).dtype == np.int32
assert "pandas" not in sys.modules, "pandas was imported"
"""
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        columns = {"a": pa.array([3, 1 << 40, -1]), "b": pa.nulls(3, pa.int32())}
        schema = pa.schema([pa.field("a", pa.int64(), nullable=False), pa.field("b", pa.int32())])
        pq.write_table(pa.table(columns, schema=schema), file.name)
        done = subprocess.run(
            [sys.executable, "-c", program, file.name],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    some = pa.chunked_array([pa.array([1, None]), pa.array([2])])
    assert numbers(some, -7).tolist() == [1, -7, 2]
