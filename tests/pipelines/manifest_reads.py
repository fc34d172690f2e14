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
from pipelines.tracking import run

_NAMES = frozenset(MANIFEST_NAMES.values())
_active: list[Counter[str]] = []
_installed: list[bool] = []


@contextmanager
def few_reads(root: Path) -> Iterator[Counter[str]]:
    """Check that a command reads each manifest at most once, and at most twice where it writes it.

    Reads of other processes do not count, nor those of the tracker: copies that it uploads in its thread, and
    digests of local files that it keeps.
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
    if not reads or not isinstance(path, str) or os.path.basename(path) not in _NAMES:
        return
    if not threading.current_thread().name.startswith("genmod-tracking") and not _in_tracker():
        for counter in _active:
            counter[path] += 1


def _in_tracker() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == run.__file__:
            return True
        frame = frame.f_back
    return False


def _writes(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
