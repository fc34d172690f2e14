"""Census of a source: what was passed over, and what the source decided, both shown before work begins."""

from __future__ import annotations

from dataclasses import dataclass, field

_MAX_KINDS = 40
"""Kinds that are counted one by one."""

_OTHER = "other files"


@dataclass
class PassedOver:
    """Files or members of one kind that are not inputs."""

    count: int
    first: str
    """Name of the first one."""


@dataclass
class Census:
    """What a source reports while its entries are iterated."""

    passed_over: dict[str, PassedOver] = field(default_factory=dict[str, PassedOver])
    """By kind and reason, e.g. ``hidden files`` or ``text files (.txt)``."""
    decisions: list[str] = field(default_factory=list[str])
    """What could be meant otherwise, and how it was read, with the key that changes it."""

    def pass_over(self, kind: str, name: str) -> None:
        """Count a file or member that is not an input."""
        if kind not in self.passed_over and len(self.passed_over) >= _MAX_KINDS:
            kind = _OTHER
        known = self.passed_over.setdefault(kind, PassedOver(0, name))
        known.count += 1

    def summary(self) -> str:
        """The most frequent kinds that were passed over, in one line; empty if there are none."""
        kinds = sorted(self.passed_over.items(), key=lambda item: -item[1].count)
        return "; ".join(f"{passed.count} {kind}" for kind, passed in kinds[:3])

    def decide(self, text: str) -> None:
        """Report a decision once."""
        if text not in self.decisions:
            self.decisions.append(text)
