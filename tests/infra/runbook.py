"""infra/RUNBOOK.md as data: its settings, its alerts, and its entries with their command blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
RUNBOOK = ROOT / "infra" / "RUNBOOK.md"

PARTS = ("before", "sign", "cure", "check")
"""Of an entry, in this order; only the first may be missing."""

_PART = re.compile(r"^\*\*(" + "|".join(map(str.capitalize, PARTS)) + r")\.\*\*", re.MULTILINE)
_NO_ENTRIES = ("Alerts",)


@dataclass(frozen=True)
class Entry:
    """One problem."""

    title: str
    text: str
    """All of its section."""
    blocks: dict[str, list[str]] = field(default_factory=dict)
    """Part -> its command blocks, as they stand."""


@dataclass(frozen=True)
class Runbook:
    """The page."""

    settings: str
    """The block that each shell starts with."""
    alerts: tuple[str, ...]
    """The first column of the table of alerts."""
    entries: tuple[Entry, ...]


def read(text: str) -> Runbook:
    """The runbook of a page. AssertionError if a part of an entry is missing, twice or out of order."""
    first, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    (settings,) = command_blocks(first)
    alerts: list[str] = []
    entries = []
    for section in sections:
        title, _, body = section.partition("\n")
        if title in _NO_ENTRIES:
            for row in re.findall(r"^\| (`.*?) \|", body, flags=re.MULTILINE):
                alerts += re.findall(r"`(\w+)`", row)
            continue
        start, *rest = _PART.split(body)
        assert not command_blocks(start), f"{title}: a block before its first part"
        names = [name.lower() for name in rest[::2]]
        assert names in ([*PARTS], [*PARTS[1:]]), f"{title} has the parts {names}"
        blocks = {name: command_blocks(part) for name, part in zip(names, rest[1::2], strict=True)}
        assert blocks["cure"], f"{title} has no cure"
        assert blocks["check"], f"{title} has no check"
        entries.append(Entry(title, body, blocks))
    return Runbook(settings, tuple(alerts), tuple(entries))


def command_blocks(text: str) -> list[str]:
    """The blocks that are indented by four spaces, after an empty line."""
    found = re.findall(r"(?:^|\n\n)((?: {4}.*\n?)+)", text)
    return [dedent(block).strip("\n") for block in found]
