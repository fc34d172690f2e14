"""Ending Ray tasks that nobody waits for any longer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

GRACE_S = 20.0


def stop(references: Collection[Any], grace_s: float = GRACE_S) -> None:
    """Let tasks that are under way end; the workers of those that take longer are killed.

    Ray's driver dies if a task ends while it is being cancelled (2.60, "Tried to complete task that was not
    pending"), so tasks that end soon are not cancelled. A task that is asked politely may miss it on a busy
    machine and go on for as long as it takes.

    Args:
        references: what the tasks will give.
        grace_s: for all together.
    """
    if not references:
        return
    import ray

    _, left = ray.wait(list(references), num_returns=len(references), timeout=grace_s)
    for reference in left:
        ray.cancel(reference, force=True)
