"""Checks the JSON document of a request strictly, before anything is computed with it.

A server's own parser is lenient: it drops unknown columns and cuts 7.5 to 7. So a document is checked first,
in one of MLflow's formats: ``dataframe_records``, ``dataframe_split``, ``inputs`` or ``instances``.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, cast

from genmod.documents import parse_json
from genmod.errors import DataError, did_you_mean, sanitize
from genmod.serving.settings import Limits

COLUMNS = ("index", "label", "class", "image")
PARAMS = ("seed", "micro_batch", "options")
_FORMATS = ("dataframe_records", "dataframe_split", "inputs", "instances")
_SHOWN = 60
_REMEDY = 'send e.g. {"dataframe_records": [{"index": 7}]}'


def check_request(data: bytes, limits: Limits) -> None:
    """Check a request's body. DataError of one line if it is not a valid request.

    Args:
        data: UTF-8 JSON.
        limits: of the model's images.
    """
    document = parse_json(data, "the request", _REMEDY, limits.budget)
    if not isinstance(document, dict):
        raise DataError(f"the request is not a JSON object; {_REMEDY}")
    body = cast("dict[str, Any]", document)
    _check_names("key", body, (*_FORMATS, "params"))
    formats = [name for name in _FORMATS if name in body]
    if len(formats) != 1:
        raise DataError(
            f"the request has {len(formats)} of the keys {', '.join(_FORMATS)}, expected one; {_REMEDY}"
        )
    params = body.get("params")
    if params is not None:
        if not isinstance(params, dict):
            raise DataError("params is not a JSON object; send names with values")
        _check_names("parameter", cast("dict[str, Any]", params), PARAMS)
        _check_values(cast("dict[str, Any]", params).items())
    rows, columns = _columns_of(formats[0], body[formats[0]])
    _check_names("column", columns, COLUMNS)
    if not 1 <= rows <= limits.rows:
        raise DataError(
            f"the request has {rows:,} rows, expected 1 to {limits.rows:,}; send several requests"
        )
    for name, values in columns.items():
        if len(values) != rows:
            raise DataError(
                f"column {name} has {len(values):,} values for {rows:,} rows; send one a row"
            )
        _check_values((name, value) for value in values)
    for number, image in enumerate(columns.get("image", ())):
        _check_base64(number, image)


def _columns_of(kind: str, value: Any) -> tuple[int, dict[str, Sequence[Any]]]:
    """Number of rows of a request, and the values of each column, in any format."""
    wrong = DataError(f"{kind} does not contain rows with columns; {_REMEDY}")
    match kind, value:
        case (("dataframe_records" | "instances"), list()):
            records = cast("list[Any]", value)
            if not all(isinstance(record, dict) for record in records):
                raise wrong
            names = list(dict.fromkeys(name for record in records for name in record))[:_SHOWN]
            return len(records), {
                name: [record[name] for record in records if name in record] for name in names
            }
        case "inputs", dict():
            columns = cast("dict[str, Any]", value)
            if not all(isinstance(values, list) for values in columns.values()):
                raise wrong
            return max(map(len, columns.values()), default=0), columns
        case "dataframe_split", {"columns": list(), "data": list()}:
            table = cast("dict[str, list[Any]]", value)
            names, rows = table["columns"], table["data"]
            same = all(isinstance(row, list) and len(row) == len(names) for row in rows)
            if not same or not all(isinstance(name, str) for name in names):
                raise wrong
            if set(table) - {"columns", "data"} or len(set(names)) < len(names):
                raise wrong
            return len(rows), {
                name: [row[place] for row in rows] for place, name in enumerate(names)
            }
        case _:
            raise wrong


def _check_names(kind: str, found: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in found:
        if name not in known:
            shown = sanitize(name[:_SHOWN])
            raise DataError(f"unknown {kind} {shown!r}; {did_you_mean(name[:_SHOWN], known)}")


def _check_base64(number: int, text: str) -> None:
    """Refuse a text with other characters, which MLflow's decoder would skip."""
    try:
        base64.b64decode(text.replace("\n", ""), validate=True)
    except ValueError:  # also of characters beyond ASCII
        raise DataError(
            f"image {number} is not base64; send the bytes of a PNG in base64"
        ) from None


def _check_values(values: Any) -> None:
    """Whole numbers and texts alone; each where it belongs."""
    for name, value in values:
        wants_text = name in ("class", "image", "options")
        if isinstance(value, bool) or not isinstance(value, str if wants_text else int):
            shown = sanitize(repr(value)[:_SHOWN])
            expected = "a text" if wants_text else "a whole number"
            raise DataError(f"{name} is {shown}, expected {expected}; correct the request")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise DataError(f"{name} does not fit into 64 bits; correct the request")
