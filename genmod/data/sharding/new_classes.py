"""Rows of classes that the version before a new one does not have: passed over and counted."""

from __future__ import annotations

from genmod.data.sources.source import NO_LABEL
from genmod.errors import sanitize
from genmod.manifest import DatasetManifest

_NAMED = 5
"""New classes that are named; more are only counted with their rows."""


class NewClasses:
    """What a source has of classes that a version does not have."""

    def __init__(self, version: DatasetManifest | None) -> None:
        """Start counting.

        Args:
            version: whose classes are known; None if all are.
        """
        self._names = frozenset(version.class_names) if version else frozenset[str]()
        self._count = version.spec.classes if version else 0
        self._first: dict[str, None] = {}
        self.rows = 0
        """Rows that were passed over."""

    def contains(self, label: str | int) -> bool:
        """Whether a label is of a new class; the row is then counted.

        Labels of the other kind, e.g. numbers where the version has names, are left to the check of kinds.
        """
        if isinstance(label, str):
            is_new = bool(self._names) and label not in self._names
        else:
            is_new = not self._names and label != NO_LABEL and label >= self._count > 0
        if is_new:
            self.rows += 1
            if len(self._first) <= _NAMED:
                self._first[str(label)] = None
        return is_new

    def __str__(self) -> str:
        names = [repr(sanitize(name[:80])) for name in self._first]
        text = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        return f"class {text} is new" if len(names) == 1 else f"classes {text} are new"
