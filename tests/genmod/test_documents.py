"""Foreign JSON: bounded, finite, typed, or one error."""

import json
from dataclasses import replace

import pytest
from pydantic import Field, ValidationError

from genmod.budget import BUDGET
from genmod.config import Config
from genmod.documents import parse_document, parse_json
from genmod.errors import DataError
from genmod.manifest import DatasetManifest, Manifest, RowStats


class Point(Config):
    x: int = Field(ge=0)
    names: tuple[str, ...] = ()


HOSTILE = {
    "empty": b"",
    "bytes": b"\xff\xfe\x00",
    "unfinished": b'{"x": 1',
    "NaN": b'{"x": NaN}',
    "infinity": b"[Infinity]",
    "overflow": b'{"x": 1e400}',
    "overflow alone": b"1e999",
    "overflow in a list": b"[1,\n-1.5E+999]",
    "overflow without exponent": b'{"x": 1' + b"0" * 400 + b".0}",
    "overflow with a short exponent": b"[1" + b"0" * 250 + b".0e99]",
    "an integer beyond floats": b"[-1" + b"0" * 400 + b"]",
    "digits": b"1" + b"0" * 5000,
    "surrogate": b'"\\ud800"',
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100 + b"1" + b"}" * 100,
    "two values": b"1 2",
    "byte order mark": b"\xef\xbb\xbf{}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_is_one_error(name):
    with pytest.raises(DataError, match=r"^the file") as caught:
        parse_json(HOSTILE[name], "the file", "remove it")
    assert str(caught.value).endswith("; remove it")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("filler", [b" ", b"\n\t ", b"0.5,", b'"",', b"[],", b"1e1,"])
def test_megabytes_of_one_pattern_are_read_in_one_pass(filler):
    """A regular expression that tries again at each place would take hours."""
    assert len(parse_json(b"[" + filler * (2**21 // len(filler)) + b"1]", "x", "y")) >= 1


def test_long_numbers_within_bounds_are_read():
    assert parse_json(b"[0." + b"1" * 500 + b", 1" + b"0" * 300 + b"]", "x", "y")[1] == 10**300


def test_ordinary_values_are_read_as_they_are():
    values = {"a": [1, 2.5, None, True, "é\u0000"], "sha": "1e400" * 10, "b": {"[[[[": "]}" * 99}}
    assert parse_json(json.dumps(values).encode(), "x", "y") == values
    assert parse_json(b"[1e300, 1e-400]", "x", "y") == [1e300, 0.0]


def test_size_and_number_of_values_are_checked_before_parsing():
    with pytest.raises(DataError, match="x: 9 bytes, more than the limit of 8; y"):
        parse_json(b"[1, 2, 3]", "x", "y", replace(BUDGET, document_bytes=8))
    with pytest.raises(DataError, match="x: 4 values, more than the limit of 3"):
        parse_json(b"[1,2,3]", "x", "y", replace(BUDGET, json_values=3))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"x": -1}', "x: Input should be greater than or equal to 0"),
        ('{"x": 1, "y": 2}', "y: Extra inputs are not permitted"),
        ('{"x": 1, "names": ["a", 3]}', r"names.1: Input should be a valid string"),
        ("[]", "Input should be a valid dictionary"),
        ('{"x": 1, "\\u001b[2J": 2}', r"\\x1b\[2J: Extra"),
    ],
)
def test_the_first_wrong_field_is_named(text, reason):
    with pytest.raises(DataError, match=rf"^it is not a point \({reason}.*\); redo$"):
        parse_document(Point, text.encode(), "a point", "it", "redo")
    assert parse_document(Point, b'{"x": 3}', "a point", "it", "redo") == Point(x=3)


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        (DatasetManifest, {"kind": "dataset", "fingerprint": "f", "shards": [0] * 1000}),
        (Manifest, {"kind": "model", "fingerprint": "f", "files": [0] * 1000}),
        (RowStats, {"rows_K": ["x"] * 1000}),
        (RowStats, {"pixel_sum_C": ["x"] * 1000}),
    ],
)
def test_a_long_list_of_wrong_values_is_one_error_in_memory(schema, values):
    with pytest.raises(ValidationError) as caught:
        schema.model_validate(values)
    assert caught.value.error_count() < 10
