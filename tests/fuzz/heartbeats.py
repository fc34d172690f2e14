"""Heartbeats: made as a worker makes them, and read as the driver does. Files stand for Ray's memory."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from cluster import compat
from cluster.heartbeats import HeartbeatCounts, WorkerProcess
from cluster.watchdog import Watchdog
from genmod.config import canonical_json

_LAUNCH = "launch"
_TIMEOUT_S = 20.0


def write_heartbeats(folder: Path) -> None:
    """Write what two ranks register."""
    for rank in range(2):
        process = WorkerProcess(
            node="ab" * 28, pid=1000 + rank, born_s=1.7e9, stack="/tmp/stack.txt"
        )
        counts = HeartbeatCounts(tick=3, count=7 + rank, at="loss")
        (folder / f"{rank:06d}").mkdir(parents=True)
        for name, value in (("process", process), ("heartbeat", counts)):
            file = folder / f"{rank:06d}" / f"{name}.json"
            file.write_bytes(canonical_json(value.model_dump()))


@contextmanager
def _values_of(folder: Path) -> Generator[None]:
    """Let the driver read the files of a folder instead of Ray's memory."""

    def read_values(prefix: str) -> dict[str, bytes]:
        files = sorted(folder.glob("*/*.json"))
        return {f"{prefix}{file.parent.name}/{file.stem}": file.read_bytes() for file in files}

    before, compat.read_values = compat.read_values, read_values
    try:
        yield
    finally:
        compat.read_values = before


def check_heartbeats(folder: Path, out: Path) -> None:
    """Check the heartbeats of a folder twice, as the watchdog's thread does."""
    watchdog = Watchdog(_LAUNCH, _TIMEOUT_S, str(out / "stacks"))
    with _values_of(folder):
        for later_s in (0, 100):
            watchdog._check(time.monotonic() + later_s)
