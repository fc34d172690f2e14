"""Objects of custom kinds against their definition: the OpenAPI schema, unknown fields, and the CEL rules."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import celpy
import jsonschema
import yaml

from tests.kubernetes.render import ROOT

VARIABLE = "GENMOD_CRDS"
"""Environment variable with the folder of KubeRay's definitions."""

_UNKNOWN = "x-kubernetes-preserve-unknown-fields"
_RULES = "x-kubernetes-validations"
HEAD = {
    "apiVersion": {"type": "string"},
    "kind": {"type": "string"},
    "metadata": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "maxLength": 253},
            "namespace": {"type": "string", "maxLength": 63},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    },
}
"""The fields that every object has; definitions leave them open."""


@dataclass
class Rules:
    """How many CEL rules were applied, and how many compare with an earlier version of the object."""

    applied: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)


def folder() -> Path:
    """Where the definitions are: the variable's folder, else ../shared/crds of the repository."""
    return Path(os.environ.get(VARIABLE) or ROOT.parent / "shared" / "crds")


@lru_cache
def definitions() -> dict[str, Path]:
    """Kind in small letters -> file. Empty where the folder is absent."""
    return {
        path.stem.partition("_")[2].rstrip("s"): path for path in folder().glob("ray.io_*.yaml")
    }


@lru_cache
def schema_of(kind: str, version: str) -> dict[str, Any] | None:
    """The schema of a kind's version; None without a definition."""
    path = definitions().get(kind.lower())
    if path is None:
        return None
    document = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    for entry in document["spec"]["versions"]:
        if entry["name"] == version and entry["served"]:
            schema = entry["schema"]["openAPIV3Schema"]
            return schema | {"properties": schema["properties"] | HEAD, "required": ["metadata"]}
    return None


def problems_of(value: dict[str, Any], schema: dict[str, Any], rules: Rules) -> list[str]:
    """What is wrong with an object: unknown fields, types, missing fields, broken rules."""
    value = _with_defaults(value, schema)
    validator = jsonschema.Draft202012Validator(_strict(schema))
    found = [
        f"{'.'.join(map(str, error.absolute_path)) or 'object'}: {error.message[:300]}"
        for error in validator.iter_errors(value)
    ]
    if not found:
        before = len(rules.problems)
        _apply_rules(value, schema, "", rules)
        found = rules.problems[before:]
    return found


def _with_defaults(value: Any, schema: dict[str, Any]) -> Any:
    """The value as the API server stores it: missing fields get the schema's defaults."""
    if isinstance(value, list):
        return [_with_defaults(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    known = schema.get("properties", {})
    others = schema.get("additionalProperties")
    others = others if isinstance(others, dict) else {}
    filled = {key: _with_defaults(item, known.get(key, others)) for key, item in value.items()}
    for key, below in known.items():
        if "default" in below:
            filled.setdefault(key, below["default"])
    return filled


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema in JSON Schema's own words, without unknown fields."""
    if schema.get("x-kubernetes-int-or-string"):
        strict: dict[str, Any] = {"type": ["integer", "string"]}
        return strict | {key: schema[key] for key in ("pattern",) if key in schema}
    strict = {
        key: value
        for key, value in schema.items()
        if not key.startswith("x-") and key not in ("format", "nullable", "default", "description")
    }
    if "properties" in strict:
        strict["properties"] = {key: _strict(below) for key, below in strict["properties"].items()}
        if not schema.get(_UNKNOWN) and "additionalProperties" not in strict:
            strict["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(strict.get(key), dict):
            strict[key] = _strict(strict[key])
    if schema.get("nullable") and "type" in strict:
        strict["type"] = [strict["type"], "null"]
    return strict


def _apply_rules(value: Any, schema: dict[str, Any], where: str, rules: Rules) -> None:
    for rule in schema.get(_RULES, ()):
        if "oldSelf" in rule["rule"]:
            rules.skipped += 1
            continue
        rules.applied += 1
        if not _holds(rule["rule"], value):
            rules.problems.append(f"{where}: {rule.get('message', rule['rule'])}")
    for part, item, below in _parts(value, schema):
        _apply_rules(item, below, f"{where}.{part}".lstrip("."), rules)


def _parts(value: Any, schema: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield str(index), item, schema.get("items", {})
    elif isinstance(value, dict):
        others = schema.get("additionalProperties")
        for key, item in value.items():
            below = schema.get("properties", {}).get(key, others)
            if isinstance(below, dict):
                yield key, item, below


def _holds(rule: str, value: Any) -> bool:
    return bool(_program(rule).evaluate({"self": celpy.json_to_cel(value)}))


@lru_cache
def _program(rule: str) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))
