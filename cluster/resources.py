"""Whether a cluster has room for workers: now, or when nodes that are on their way have come."""

from __future__ import annotations

import time
from typing import Protocol

POLL_S = 0.5
"""Between looks at the nodes."""


class Asks(Protocol):
    """What one worker asks of a node."""

    @property
    def cpus(self) -> float:
        """Above 0."""
        ...

    @property
    def gpus(self) -> float:
        """0 for none."""
        ...

    @property
    def wait_s(self) -> float:
        """How long nodes may take to come."""
        ...


def room(where: Asks, wanted: int) -> int:
    """How many workers all nodes together have room for, were they idle.

    Waits for nodes to come, as they do after one was lost or where a cluster grows by itself, until there
    is room for ``wanted`` or ``where.wait_s`` has passed.
    """
    end_s = time.monotonic() + where.wait_s
    while (found := _room(where)) < wanted and time.monotonic() < end_s:
        time.sleep(POLL_S)
    return found


def _room(where: Asks) -> int:
    import ray

    found = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            fits = int(has.get("CPU", 0) / where.cpus)
            found += min(fits, int(has.get("GPU", 0) / where.gpus)) if where.gpus else fits
    return found
