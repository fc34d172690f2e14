"""Base of all configurations: frozen, typed, without unknown keys, and with a fingerprint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from genmod.errors import ConfigError, did_you_mean, sanitize


class Config(BaseModel):
    """A frozen configuration, defined next to the code that uses it. Unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings"
    )


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def parse(schema: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """Validate values from a user's file. The first problem becomes a ConfigError of one line.

    Args:
        schema: the configuration class.
        values: as read from YAML.
        where: path of the section in the recipe, e.g. ``model.vae``.
    """
    try:
        config = schema.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_first_problem(schema, error, where)) from None
    for key, value in _numbers(config, where):
        if not math.isfinite(value):
            raise ConfigError(f"recipe: {key} is {value}, expected a finite number")
    return config


def _numbers(value: Any, where: str) -> Iterator[tuple[str, float]]:
    """Path and value of every float that a user set, in all sections."""
    if isinstance(value, float):
        yield where, value
    elif isinstance(value, BaseModel):
        for name in value.model_fields_set:
            yield from _numbers(getattr(value, name), f"{where}.{name}" if where else name)
    elif isinstance(value, Mapping):
        for name, inner in cast("Mapping[Any, Any]", value).items():
            yield from _numbers(inner, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for inner in cast("list[Any]", value):
            yield from _numbers(inner, where)


# The name of an error, no password.
_SECRET = "secret"  # nosec B105
"""``genmod.storage.urls.SECRET_PROBLEM``: errors whose input must not be printed."""

_SHOWN_CHARS = 200
"""Characters of a wrong value that an error shows."""

_TYPE_NAMES = ("constrained-", "tuple[", "list[", "dict[", "literal[", "function-")
"""How pydantic's names of union members start, where they are more than one word."""


_SECTION_TYPES = ("dict_type", "model_type", "model_attributes_type")
"""Errors of a value that is no section."""


def _meant(problems: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without those of a union's other members, if the value is a section and one member is one."""
    first = problems[0]
    wants_value = first["type"].endswith("_type") and first["type"] not in _SECTION_TYPES
    if not isinstance(first["input"], Mapping) or not wants_value:
        return problems
    parent = first["loc"][:-1]
    return [p for p in problems[1:] if p["loc"][: len(parent)] == parent] or problems


def _first_problem(schema: type[BaseModel], error: ValidationError, where: str) -> str:
    problems = _meant(error.errors(include_url=False))
    by_type = {p["type"]: p for p in reversed(problems)}
    problem = by_type.get(_SECRET) or by_type.get("extra_forbidden") or problems[0]
    location = [*([where] if where else []), *map(str, problem["loc"])]
    if location and location[-1] == "[key]" and problem["type"] == _SECRET:
        location = location[:-2]  # the key is the secret
    # Members of a union are no keys.
    inner = (part for part in location[1:] if not part.startswith(_TYPE_NAMES))
    location = [*location[:1], *inner]
    path = sanitize(".".join(location))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        valid = _keys_at(schema, problem["loc"][:-1])
        return f"recipe: unknown key {path!r}; {did_you_mean(key, valid)}{more}"
    if problem["type"] == "missing":
        return f"recipe: {path!r} is missing; add it{more}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == _SECRET:
        return f"recipe: {path}: {message}{more}"
    if problem["type"] in _SECTION_TYPES:
        message = "input should be a section with keys"
    got = repr(problem["input"])
    got = sanitize(got if len(got) <= _SHOWN_CHARS else f"{got[:_SHOWN_CHARS]} ...")
    return f"recipe: {path} is {got}: {message[0].lower()}{message[1:]}{more}"


def _keys_at(schema: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Valid keys of the section at a location of pydantic's."""
    current: Any = schema
    for part in loc:
        field = current.model_fields.get(str(part)) if hasattr(current, "model_fields") else None
        if field is None:
            continue
        current = field.annotation
        for candidate in (current, *getattr(current, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                current = candidate
                break
    return list(current.model_fields) if hasattr(current, "model_fields") else []


def canonical_json(value: Any) -> bytes:
    """The same bytes for equal values: JSON with sorted keys, without spaces and NaN.

    >>> canonical_json({"b": 1, "a": [2]})
    b'{"a":[2],"b":1}'
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


def as_json(config: BaseModel) -> dict[str, Any]:
    """All fields as JSON values that parse back to an equal configuration; infinity is ``Infinity``."""
    return json.loads(config.model_dump_json())


def fingerprint(*parts: Any) -> str:
    """SHA-256 of everything that determines a result, in hex. Parts are JSON values or Configs."""
    values = [as_json(p) if isinstance(p, BaseModel) else p for p in parts]
    return hashlib.sha256(canonical_json(values)).hexdigest()
