"""Secrets in plain text: in Secret objects, environment variables, ConfigMaps and any other text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_NAME = re.compile(
    r"passw|secret|token|credential|(api|access|private|account)_?key|pgpass", re.IGNORECASE
)
_PLACE = re.compile(r"_(PATH|FILE|FOLDER|NAME|MODE)$")
_TEXT = re.compile(
    r"://[^/\s:@]*:[^/\s@]+@|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|(aws_secret_access_key|password|secret_key)[\"']?\s*[=:]\s*[\"']?\S",
    re.IGNORECASE,
)


def secret_problems(value: dict[str, Any]) -> list[str]:
    """Where an object contains a secret. The secret itself is not repeated."""
    found: list[str] = []
    if value.get("kind") == "Secret":
        entries = {**(value.get("data") or {}), **(value.get("stringData") or {})}
        found += [f"secret in plain text: key {key}" for key, text in entries.items() if text]
    if value.get("kind") == "ConfigMap":
        entries = value.get("data") or {}
        found += [
            f"secret in plain text: key {k}" for k, text in entries.items() if _named(k) and text
        ]
    for where, node in _walk(value, ""):
        if isinstance(node, dict) and _named(str(node.get("name", ""))) and node.get("value"):
            found.append(f"secret in plain text: {where}, variable {node['name']}")
        elif isinstance(node, str) and _TEXT.search(node):
            found.append(f"secret in plain text: {where}")
    return found


def _named(name: str) -> bool:
    return bool(_NAME.search(name)) and not _PLACE.search(name)


def _walk(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    yield where, value
    parts = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in parts:
        yield from _walk(item, f"{where}.{key}".lstrip("."))
