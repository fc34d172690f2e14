"""Base of all configurations: frozen, typed, without unknown keys, and with a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from genmod.errors import ConfigError, did_you_mean


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
        return schema.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_first_problem(schema, error, where)) from None


_TYPE_NAMES = ("constrained-", "tuple[", "list[", "dict[", "literal[", "function-")
"""How pydantic's names of union members start, where they are more than one word."""


def _first_problem(schema: type[BaseModel], error: ValidationError, where: str) -> str:
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = [str(part) for part in (where, *problem["loc"]) if part != ""]
    if len(location) > 1 and location[-1].startswith(_TYPE_NAMES):
        location.pop()  # the member of a union, which is no key
    path = ".".join(location)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        valid = _keys_at(schema, problem["loc"][:-1])
        return f"recipe: unknown key {path!r}; {did_you_mean(key, valid)}{more}"
    if problem["type"] == "missing":
        return f"recipe: {path!r} is missing; add it{more}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("dict_type", "model_type", "model_attributes_type"):
        message = "input should be a section with keys"
    return f"recipe: {path} is {problem['input']!r}: {message[0].lower()}{message[1:]}{more}"


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
