"""Counts how often a command opens each manifest for reading, at the level of the operating system."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genmod.manifest import MANIFEST_NAMES

_NAMES = frozenset(MANIFEST_NAMES.values())
_active: list[Counter[str]] = []
_installed: list[bool] = []


@contextmanager
def few_reads(root: Path) -> Iterator[Counter[str]]:
    """Check that a command reads each manifest at most once, and at most twice where it writes it.

    Reads of other processes do not count, nor copies that the tracker uploads in its thread.
    """
    if not _installed:
        sys.addaudithook(_on_event)  # cannot be removed; it does nothing while no counter is active
        _installed.append(True)
    before = _manifests(root)
    reads: Counter[str] = Counter()
    _active.append(reads)
    try:
        yield reads
    finally:
        _active.remove(reads)
    written = _manifests(root) - before
    too_many = {path: n for path, n in reads.items() if n > (2 if path in written else 1)}
    assert not too_many, f"manifests that were read too often: {too_many}"


def _manifests(root: Path) -> set[str]:
    return {str(path) for path in root.rglob("*.json") if path.name in _NAMES}


def _on_event(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open" or not _active:
        return
    path, mode, flags = arguments
    reads = mode.startswith("r") if isinstance(mode, str) else not _writes(flags)
    in_tracker = threading.current_thread().name.startswith("genmod-tracking")
    if reads and not in_tracker and isinstance(path, str) and os.path.basename(path) in _NAMES:
        for counter in _active:
            counter[path] += 1


def _writes(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
