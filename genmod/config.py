"""What every configuration has in common: frozen, typed, no unknown keys, a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from genmod.errors import ConfigError, did_you_mean


class Config(BaseModel):
    """A frozen configuration. It sits next to the code that uses it; unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings"
    )


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def parse(schema: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """Validate values from a person's file. The first fault becomes a one-line ConfigError.

    Args:
        schema: the configuration class.
        values: as read from YAML.
        where: path of the section in the recipe, e.g. ``model.vae``.
    """
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_first_fault(schema, error, where)) from None


def _first_fault(schema: type[BaseModel], error: ValidationError, where: str) -> str:
    faults = error.errors(include_url=False)
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    path = ".".join(str(part) for part in (where, *fault["loc"]) if part != "")
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    if fault["type"] == "extra_forbidden":
        key = str(fault["loc"][-1])
        valid = _keys_at(schema, fault["loc"][:-1])
        return f"recipe: unknown key {path!r}; {did_you_mean(key, valid)}{more}"
    if fault["type"] == "missing":
        return f"recipe: {path!r} is missing; add it{more}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"recipe: {path} is {fault['input']!r}: {message[0].lower()}{message[1:]}{more}"


def _keys_at(schema: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Valid keys of the section that a fault's location points to."""
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
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


def as_json(config: BaseModel) -> dict[str, Any]:
    """All fields as JSON values that parse back to the same; infinity is the text ``Infinity``."""
    return json.loads(config.model_dump_json())


def fingerprint(*parts: Any) -> str:
    """What a unit of work was made from, as 64 hex digits. Parts are JSON values or Configs."""
    values = [as_json(p) if isinstance(p, BaseModel) else p for p in parts]
    return hashlib.sha256(canonical_json(values)).hexdigest()
