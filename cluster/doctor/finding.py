"""One result of the doctor: which node, which check, how bad, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from genmod.config import Config

Severity = Literal["ok", "warning", "fatal"]
"""``warning``: the recipe runs, but slower or less safely. ``fatal``: it fails, or gives wrong results."""

DRIVER = "driver"
"""Node of findings about the machine that runs the command."""


class Finding(Config):
    """The result of one check on one node."""

    node: str
    """Host name and address, or ``driver``."""
    check: str
    level: Severity
    text: str
    """What was found, in one line."""
    remedy: str = ""
    """What to do; empty if the level is ok."""


class Report:
    """Collects the findings of one node.

    Args:
        node: its name.
    """

    def __init__(self, node: str) -> None:
        self.node = node
        self.findings: list[Finding] = []

    def ok(self, check: str, text: str) -> None:
        """Add a check that found nothing."""
        self._add(check, "ok", text, "")

    def warning(self, check: str, text: str, remedy: str) -> None:
        """Add a finding with which the recipe still runs."""
        self._add(check, "warning", text, remedy)

    def fatal(self, check: str, text: str, remedy: str) -> None:
        """Add a finding with which the recipe fails or computes wrong results."""
        self._add(check, "fatal", text, remedy)

    def limit(
        self, check: str, text: str, remedy: str, value: float, *, fatal: float, warning: float
    ) -> None:
        """Add a finding by two lower limits of a value."""
        level: Severity = "fatal" if value < fatal else "warning" if value < warning else "ok"
        self._add(check, level, text, "" if level == "ok" else remedy)

    def _add(self, check: str, level: Severity, text: str, remedy: str) -> None:
        text, remedy = " ".join(text.split()), " ".join(remedy.split())
        self.findings.append(
            Finding(node=self.node, check=check, level=level, text=text, remedy=remedy)
        )


def is_fatal(findings: Iterable[Finding]) -> bool:
    """Whether one of the findings is fatal."""
    return any(finding.level == "fatal" for finding in findings)
