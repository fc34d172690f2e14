"""Documents of requests: valid ones in each format, and everything else as one line."""

import json
from dataclasses import replace

import pytest

from genmod.errors import DataError
from genmod.manifest import ImageSpec
from genmod.serving.request import check_request
from genmod.serving.settings import Limits

LIMITS = Limits.of(ImageSpec(channels=1, height=8, width=8, classes=3))


def encoded(document):
    return json.dumps(document).encode()


VALID = (
    {"dataframe_records": [{"index": 7}]},
    {"dataframe_records": [{"index": 7, "label": 1}] * LIMITS.rows},
    {"dataframe_split": {"columns": ["index", "label"], "data": [[7, 1], [8, 2]]}},
    {"inputs": {"index": [7, 8]}},
    {"inputs": {"index": [7, 8], "class": ["10", "it's"]}},
    {"instances": [{"image": "aGk=", "label": 0}]},
    {"inputs": {"index": [7]}, "params": {"seed": 1, "micro_batch": 2, "options": "{}"}},
    {"inputs": {"index": [7]}, "params": {}},
)


@pytest.mark.parametrize("document", VALID, ids=lambda document: str(document)[:40])
def test_a_valid_request_passes(document):
    check_request(encoded(document), LIMITS)


WRONG = {
    "no document": (b"", "valid JSON"),
    "a half document": (b'{"inputs": {"index": [7', "valid JSON"),
    "no text": (b"\xff\xfe", "valid JSON"),
    "a number beyond floats": (b'{"inputs": {"index": [1e999]}}', "the request"),
    "NaN": (b'{"inputs": {"index": [NaN]}}', "valid JSON"),
    "nesting": (b"[" * 50_000 + b"]" * 50_000, "the request"),
    "a list": ([{"index": 7}], "not a JSON object"),
    "no format": ({"params": {}}, "has 0 of the keys"),
    "two formats": ({"inputs": {"index": [1]}, "instances": []}, "has 2 of the keys"),
    "another key": ({"input": {"index": [1]}}, "did you mean 'inputs'"),
    "another column": ({"inputs": {"indx": [1]}}, "did you mean 'index'"),
    "another parameter": ({"inputs": {"index": [1]}, "params": {"sead": 1}}, "did you mean 'seed'"),
    "another parameters": ({"inputs": {"index": [1]}, "params": [1]}, "params is not"),
    "no rows": ({"dataframe_records": []}, "0 rows"),
    "many rows": ({"inputs": {"index": [0] * (LIMITS.rows + 1)}}, "257 rows"),
    "a scalar": ({"inputs": 7}, "does not contain rows"),
    "records of lists": ({"dataframe_records": [[7]]}, "does not contain rows"),
    "a short row": (
        {"dataframe_split": {"columns": ["index", "label"], "data": [[7]]}},
        "does not contain rows",
    ),
    "a row index": (
        {"dataframe_split": {"columns": ["index"], "data": [[7]], "index": [0]}},
        "does not contain rows",
    ),
    "a column twice": (
        {"dataframe_split": {"columns": ["index", "index"], "data": [[7, 8]]}},
        "does not contain rows",
    ),
    "a missing value": ({"dataframe_records": [{"index": 7}, {"label": 1}]}, "one a row"),
    "a null": ({"inputs": {"index": [None]}}, "index is None, expected a whole number"),
    "a fraction": ({"inputs": {"index": [7.5]}}, "index is 7.5, expected a whole number"),
    "a truth value": ({"inputs": {"index": [True]}}, "index is True, expected a whole number"),
    "a text": ({"inputs": {"index": ["7"]}}, "index is '7', expected a whole number"),
    "a class by number": (
        {"inputs": {"index": [7], "class": [10]}},
        "class is 10, expected a text",
    ),
    "a label by name": (
        {"inputs": {"index": [7], "label": ["10"]}},
        "label is '10', expected a whole",
    ),
    "an image of numbers": ({"inputs": {"image": [[0, 1]]}}, "image is [0, 1], expected a text"),
    "an image that is no base64": (
        {"inputs": {"image": ["aGk=", "a*k="]}},
        "image 1 is not base64",
    ),
    "an image beyond ASCII": ({"inputs": {"image": ["\u00e9"]}}, "image 0 is not base64"),
    "an integer of 100 digits": ({"inputs": {"index": [10**100]}}, "64 bits"),
    "a control character": ({"inputs": {"index": ["\x1b[2J"]}}, r"\x1b"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_a_wrong_request_is_one_line(case):
    document, expected = case
    data = document if isinstance(document, bytes) else encoded(document)
    with pytest.raises(DataError) as caught:
        check_request(data, LIMITS)
    text = str(caught.value)
    assert expected in text
    assert text.isprintable()
    assert len(text) < 400


def test_a_body_beyond_the_limit_is_not_parsed():
    with pytest.raises(DataError, match="more than the limit of 9"):
        check_request(encoded(VALID[0]), replace(LIMITS, body_bytes=9))


@pytest.mark.parametrize(
    ("side", "rows"), [(8, 256), (64, 256), (128, 85), (512, 5), (2048, 1), (8192, 1)]
)
def test_larger_images_are_fewer_in_a_request(side, rows):
    limits = Limits.of(ImageSpec(channels=3, height=side, width=side))
    assert limits.rows == rows
    assert limits.body_bytes <= 64 << 20
    if side <= 2048:  # a request of that many images fits, each as large as PNG can make it
        assert limits.body_bytes >= rows * (3 * side * side + 2 * side) * 4 // 3
