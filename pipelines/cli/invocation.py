"""A parsed command: what it runs, and how it reports the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Invocation:
    """A parsed command: what it runs and how it reports the result."""

    stage: str | None
    """None if the command is unknown."""
    run: Callable[[], dict[str, Any]]
    as_json: bool
    debug: bool
