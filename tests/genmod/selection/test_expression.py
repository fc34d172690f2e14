"""Conditions: parsed by a small grammar, the same rows as Python's own rules, one error for hostile texts."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genmod.errors import ConfigError
from genmod.selection.expression import (
    MAX_CHARS,
    Comparison,
    Junction,
    Negation,
    check_columns,
    parse_condition,
)

KINDS = {"nats": "number", "label": "number", "p_corrected": "number", "class": "text"}

ROWS = {
    "nats": np.array([-1.0, 0.0, 2.5, np.nan]),
    "label": np.array([0, 1, 2, 3]),
    "class": np.array(["cat", "dog", "it's", 'a "b"'], dtype=object),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nats > -1", [0, 1, 1, 0]),
        ("nats>=-1.0e0 AND nats<2.5", [1, 1, 0, 0]),
        ("nats != 0", [1, 0, 1, 0]),
        ("not nats = 0", [1, 0, 1, 1]),
        ("label = 1 or label == 2 and nats < 0", [0, 1, 0, 0]),
        ("(label = 1 or label == 2) and nats > 0", [0, 0, 1, 0]),
        ("class = 'cat' or class = \"dog\"", [1, 1, 0, 0]),
        ("class != 'it''s'", [1, 1, 0, 1]),
        ('class = "a ""b"""', [0, 0, 0, 1]),
        ("not not label < .5e1", [1, 1, 1, 1]),
    ],
)
def test_rows_meet_a_condition(text, expected):
    condition = parse_condition(text)
    check_columns(condition, KINDS)
    assert condition.mask(ROWS).tolist() == [bool(value) for value in expected]
    again = parse_condition(str(condition))
    assert str(again) == str(condition)
    assert again == condition


WRONG = {
    "": "got the end at character 1, expected a column",
    "nats >": "got the end at character 7, expected a number, or a text in quotes",
    "nats": "expected one of < <= > >= = !=",
    "nats > 1 2": "got '2' at character 10, expected and, or, or the end",
    "nats > nan": "got 'nan' at character 8, expected a number",
    "nats > 1e999": "'1e999' at character 8 is too large",
    "nats > 'x": "character 8, .*close the quotes",
    "nats > 1 and": "got the end",
    "(nats > 1": "expected '\\)'",
    "1 < nats": "got '1' at character 1, expected a column",
    "nats > 1 & label = 2": "got '&' at character 10",
    "0 < nats < 1": "got '0'",
    "nats > 0x10": "got '0' at character 8",
    "n\u00e4ts > 1": "at character 2",
    "__import__('os').system('true')": "got '.' at character 17",
    "system('true')": "expected one of < <= > >= = !=",
    "nats > -> 1": "got '-'",
    "not " * 33 + "nats > 1": "more than 32 levels",
    "(" * 40 + "nats > 1" + ")" * 40: "more than 32 levels",
    "nats > 1" + " " * MAX_CHARS: "more than the limit of 4,096",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_text_is_one_line_that_names_the_place(text):
    with pytest.raises(ConfigError, match=WRONG[text]) as error:
        parse_condition(text)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p_corected > 1", "no column 'p_corected'; did you mean 'p_corrected'"),
        ("x > 1", "no column 'x'; valid: class, label, nats, p_corrected"),
        ("nats = 'cat'", "expected a number"),
        ("class = 3", "expected a text in quotes"),
        ("class < 'cat'", "texts are compared by = and != only"),
    ],
)
def test_columns_are_checked(text, expected):
    with pytest.raises(ConfigError, match=expected):
        check_columns(parse_condition(text), KINDS)


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: name.lower() not in ("and", "or", "not")
)
VALUES = (
    st.integers(-(10**14), 10**14)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
CONDITIONS = st.recursive(
    st.builds(Comparison, NAMES, st.sampled_from(["<", "<=", ">", ">=", "=", "!="]), VALUES),
    lambda inner: (
        st.builds(Negation, inner)
        | st.builds(
            Junction, st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3).map(tuple)
        )
    ),
    max_leaves=8,
)  # fmt: skip


@given(CONDITIONS)
def test_the_normal_form_means_the_same(condition):
    text = str(condition)
    if len(text) <= MAX_CHARS:
        assert str(parse_condition(text)) == text


@given(
    st.text(max_size=200)
    | st.text(alphabet="()<>=!'\" andortp1.e-+_\n\t\x00", max_size=400)
    | st.lists(st.sampled_from(["not", "(", ")", "nats", ">", "1", "or", "'", '"', "e9"])).map(" ".join)
)  # fmt: skip
def test_any_text_is_a_condition_or_one_error(text):
    try:
        normal = str(parse_condition(text))
    except ConfigError as error:
        normal = ""
        message = str(error)
    else:
        message = str(parse_condition(normal))
    assert normal in {"", message}
    assert message.isprintable() or normal


@pytest.mark.parametrize(
    "text", ["1" * 4000 + "x", "a" * 4000, "'" + "''" * 2000, "." * 4000, "(" * 4000, "a>1 or " * 500]
)  # fmt: skip
def test_long_texts_are_one_error(text):
    with pytest.raises(ConfigError):
        parse_condition(text)


def test_integers_are_exact():
    condition = parse_condition(f"index = {2**40 - 1}")
    index_N = np.array([2**40 - 2, 2**40 - 1, 2**40])
    assert condition.mask({"index": index_N}).tolist() == [False, True, False]
    assert math.isfinite(parse_condition("index < 9" + "9" * 300).value)
