"""Reads values without quotes by the type that is wanted: a number, a truth value or a text.

YAML's own rules depend on its version: ``no`` is false, ``1e-3`` is a text and ``010`` is 8 for some programs
only. Here the setting decides: :func:`typed` is the only place where a plain value gets its type.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import yaml
from pydantic import BaseModel

from genmod.errors import ConfigError, sanitize

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_DIGITS = r"\d+(?:_\d+)*"
_INTEGER = re.compile(rf"[-+]?{_DIGITS}")
_OTHER_BASE = re.compile(r"[-+]?0(?:x[0-9a-fA-F]+|o[0-7]+|b[01]+)(?:_[0-9a-fA-F]+)*")
_FLOAT = re.compile(rf"[-+]?(?:{_DIGITS}\.?(?:{_DIGITS})?|\.{_DIGITS})(?:[eE][-+]?\d{{1,6}})?")
_LEADING_ZERO = re.compile(r"[-+]?0[\d_]+")
_USUAL_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")
"""Numbers where a text is accepted too: no sign ``+``, leading zeros, exponents, underscores or bases."""

_MAX_BITS = 64
_MAX_CHARS = 80
"""Of a number."""


class Plain(str):
    """A value without quotes in YAML, as it is written."""

    __slots__ = ()


def is_null(text: str) -> bool:
    """Whether a value without quotes stands for no value."""
    return text in _NULLS


def typed(annotation: Any, value: Any, where: str = "") -> Any:
    """A tree of YAML values in which each :class:`Plain` one has the type that is wanted.

    A value that fits no wanted type is returned so that validation refuses it.

    Args:
        annotation: type of the value, e.g. a configuration class; Any accepts every value.
        value: as :func:`~pipelines.recipe.yaml_text.parse_yaml` returned it.
        where: path of the value in the recipe, for errors.

    Raises:
        ConfigError: a number can be read in two ways, or has more than 64 bits.
    """
    members = list(_members(annotation))
    if isinstance(value, Plain):
        return _scalar(members, value, where)
    if isinstance(value, Mapping):
        return _section(members, cast("Mapping[str, Any]", value), where)
    if isinstance(value, list):
        items = cast("list[Any]", value)
        inner = _item_types(members, len(items))
        return [typed(inner[i], item, f"{where}.{i}") for i, item in enumerate(items)]
    return value


def dump_yaml(value: Any) -> str:
    """Values as YAML. Texts that other programs could take for a number or truth value have quotes."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that :func:`typed` would read as something else where anything is accepted."""

    def represent_text(self, text: str) -> yaml.Node:
        """The node of a text."""
        is_text = isinstance(_scalar([Any], Plain(text), ""), str)
        style = None if is_text or not text.isprintable() else "'"
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)


def _members(annotation: Any) -> Iterator[Any]:
    """The types of a union, without the annotations."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for inner in get_args(annotation):
            yield from _members(inner)
    else:
        yield annotation


def _section(members: Sequence[Any], value: Mapping[str, Any], where: str) -> dict[Any, Any]:
    schemas = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
    if schemas:
        fields = max(schemas, key=lambda schema: _fit(schema, value)).model_fields
        return {
            str(key): typed(fields[key].annotation if key in fields else Any, item, _at(where, key))
            for key, item in value.items()
        }
    mappings = [get_args(m) for m in members if _is(m, dict, Mapping) and get_args(m)]
    key_type, item_type = mappings[0] if mappings else (str, Any)
    section: dict[Any, Any] = {}
    for text, item in value.items():
        is_text = str in _members(key_type)
        key = str(text) if is_text else typed(key_type, Plain(text), _at(where, text))
        if key in section:
            raise ConfigError(f"recipe: {_at(where, text)} occurs twice; remove one")
        section[key] = typed(item_type, item, _at(where, text))
    return section


def _fit(schema: type[BaseModel], value: Mapping[str, Any]) -> tuple[int, int]:
    """How well keys and values that are named in the schema fit it; of several, the best is used."""
    fields = schema.model_fields
    named = [
        key
        for key, item in value.items()
        if key in fields and item in get_args(fields[key].annotation)
    ]
    return sum(key in fields for key in value), len(named)


def _item_types(members: Sequence[Any], count: int) -> list[Any]:
    """The type of each item of a list."""
    for member in members:
        inner = get_args(member)
        if _is(member, tuple) and inner and inner[-1] is not Ellipsis:
            return [*inner, *[Any] * count][:count]
        if _is(member, tuple, list, set, frozenset, Sequence) and inner:
            return [inner[0]] * count
    return [Any] * count


def _is(annotation: Any, *kinds: Any) -> bool:
    return annotation in kinds or get_origin(annotation) in kinds


def _at(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def _scalar(members: Sequence[Any], text: Plain, where: str) -> Any:
    """The value of a plain text as the first of these types that fits."""
    if text in _NULLS:
        return None
    if Any in members:
        return _usual(text, where)
    literals = [value for m in members if _is(m, Literal) for value in get_args(m)]
    if str(text) in literals:
        return str(text)
    kinds = {m for m in members if isinstance(m, type)} | {type(value) for value in literals}
    truth = _TRUTH.get(text.lower())
    if str in members:
        is_word = truth is not None and text.lower() in ("true", "false")
        if is_word and bool in kinds:
            return truth
        number = _number(text, where) if _USUAL_NUMBER.fullmatch(text) else None
        is_wanted = float in kinds or (int in kinds and isinstance(number, int))
        return number if number is not None and is_wanted else str(text)
    if bool in kinds and truth is not None:
        return truth
    number = _number(text, where) if kinds & {int, float} else None
    return str(text) if number is None else number


def _usual(text: Plain, where: str) -> Any:
    """The value of a plain text where anything is accepted."""
    if text.lower() in ("true", "false"):
        return _TRUTH[text.lower()]
    number = None if _LEADING_ZERO.fullmatch(text) else _number(text, where)
    return str(text) if number is None else number


def _number(text: Plain, where: str) -> int | float | None:
    """The number in a text, a whole one as ``int``; None if it is none."""
    is_other, is_float = _OTHER_BASE.fullmatch(text), _FLOAT.fullmatch(text)
    if not (is_other or is_float):
        return None
    shown = sanitize(text[:_MAX_CHARS])
    if len(text) > _MAX_CHARS:
        raise ConfigError(f"recipe: {where} is {shown}...: a number of {len(text):,} characters")
    if is_other:
        return _within(int(text, 0), where)
    if _LEADING_ZERO.fullmatch(text):
        raise ConfigError(
            f"recipe: {where} is {shown}: a number with a leading zero is octal for some programs and "
            "decimal for others; write it without the zero, or in quotes if it is a text"
        )
    return _decimal(text, where)


def _decimal(text: str, where: str) -> int | float:
    digits = text.replace("_", "")
    if _INTEGER.fullmatch(text):
        return _within(int(digits), where)
    value = float(digits)
    if math.isfinite(value) and abs(value) < 2.0**_MAX_BITS and "." not in digits:
        exact = Decimal(digits)
        if exact == exact.to_integral_value():
            return int(exact)
    return value


def _within(value: int, where: str) -> int:
    if not -(2 ** (_MAX_BITS - 1)) <= value < 2**_MAX_BITS:
        raise ConfigError(f"recipe: {where}: the number has more than {_MAX_BITS} bits")
    return value
