"""The one reader of JSON that another process, another machine or another user may have written."""

from __future__ import annotations

import re
import sys
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from genmod.budget import BUDGET, ReadBudget
from genmod.errors import DataError, sanitize

SchemaT = TypeVar("SchemaT", bound=BaseModel)

_DIGITS = rb"-?[0-9](?:[0-9]{199}|[0-9.]*[eE]\+?[0-9]{3,})"
_LARGE_FIRST, _LARGE_NUMBER = re.compile(_DIGITS), re.compile(rb"[\[:,\s]" + _DIGITS)
"""A number that may be beyond 64-bit floats, at the start and after it. Matching takes one pass, whatever the
text; a set of characters in front makes it four times faster than a look behind."""

_LARGEST = sys.float_info.max

_MAX_REASON = 160
"""Characters of the reason in an error."""


def parse_json(data: bytes, where: str, remedy: str, budget: ReadBudget = BUDGET) -> Any:
    """JSON values of a document: finite numbers, valid Unicode, bounded size and nesting.

    Args:
        data: UTF-8 text.
        where: name of the document, for the error.
        remedy: what the user can do, the end of the error.
        budget: limits of size, values and nesting.

    Raises:
        DataError: the text is not such a document.
    """
    budget.check(where, remedy, document_bytes=len(data))
    values = 1 + data.count(b",") + data.count(b"[") + data.count(b"{")
    budget.check(where, remedy, json_values=values)
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise DataError(f"{where} is not valid JSON ({_one_line(error)}); {remedy}") from None
    is_large = _LARGE_FIRST.match(data) or _LARGE_NUMBER.search(data)
    if is_large or _depth(data) > budget.nesting:
        _check_values(value, where, remedy, budget)
    return value


def parse_document(
    schema: type[SchemaT], data: bytes, what: str, where: str, remedy: str
) -> SchemaT:
    """A typed document.

    Args:
        schema: its fields with their bounds.
        data: UTF-8 JSON.
        what: kind of the document, e.g. ``a receipt``.
        where: its name, for the error.
        remedy: what the user can do, the end of the error.

    Raises:
        DataError: the text is not such a document; names the first wrong field.
    """
    return validate(schema, parse_json(data, where, remedy), what, where, remedy)


def validate(schema: type[SchemaT], value: Any, what: str, where: str, remedy: str) -> SchemaT:
    """As :func:`parse_document`, for JSON values that are parsed already.

    Long lists of a schema need ``Field(fail_fast=True)``: else each wrong element becomes an error in memory.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        problem: Any = error.errors(include_url=False, include_input=False)[0]
        field = sanitize(".".join(str(part) for part in problem["loc"]))[:_MAX_REASON]
        message = problem["msg"].removeprefix("Value error, ")
        reason = f"{field}: {message}" if field else message
    except (ValueError, RecursionError, OverflowError) as error:
        reason = _one_line(error)
    raise DataError(f"{where} is not {what} ({sanitize(reason)[: 2 * _MAX_REASON]}); {remedy}")


def _one_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return sanitize(lines[0])[:_MAX_REASON] if lines else type(error).__name__


_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _depth(data: bytes) -> int:
    """Upper bound of the nesting depth; brackets within strings count."""
    brackets = data.translate(None, _NO_BRACKETS)
    opened = brackets.replace(b"{", b"[").replace(b"}", b"]")
    depth = 0
    while opened and depth <= BUDGET.nesting:
        shorter = opened.replace(b"[]", b"")
        if len(shorter) == len(opened):  # brackets in strings do not match
            return BUDGET.nesting + 1
        opened, depth = shorter, depth + 1
    return depth


def _check_values(root: Any, where: str, remedy: str, budget: ReadBudget) -> None:
    """Check the depth and the numbers of parsed JSON."""
    level, depth = [root], 0
    while level:
        budget.check(where, remedy, nesting=depth)
        children: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                children.extend(value.values())
            elif isinstance(value, list):
                children.extend(value)
            elif isinstance(value, int | float) and not -_LARGEST <= value <= _LARGEST:
                raise DataError(f"{where}: a number is too large for 64 bits; {remedy}")
        level, depth = children, depth + 1
