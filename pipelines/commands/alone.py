"""Runs a stage that one process at a time does below a root; a second one says who works, and how far.

The lease is asked for before torch and Ray are imported, so the answer comes at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from genmod import storage
from genmod.config import Config, parse
from genmod.lease import Busy, Lease, LeaseHolder, acquire
from genmod.storage import RootUrl, StorageConfig
from pipelines.recipe.progress import ProgressDisplay
from pipelines.recipe.renamed import refuse_renamed
from pipelines.recipe.retraining import RetrainConfig
from pipelines.recipe.scalars import typed
from pipelines.recipe.tree import read_tree

ALREADY_RUNNING = "already running"
"""Status of a command that did nothing because another process does the same."""

StageWork = Callable[[Lease | None], dict[str, Any]]
"""The stage; it is given the lease, None if it will fail before it writes anything."""


class _Place(Config):
    """The parts of a recipe that say where the lease is."""

    root: RootUrl
    retrain: RetrainConfig = RetrainConfig()
    storage: StorageConfig | None = None


def run_alone(
    stage: str,
    recipe: str,
    assignments: Sequence[str],
    progress: ProgressDisplay,
    work: StageWork,
) -> dict[str, Any]:
    """Run a stage while this process holds its lease; otherwise log and return who holds it.

    Args:
        stage: its name, also that of the lease.
        recipe: a shipped recipe's name or a file.
        assignments: texts ``a.b=c``.
        progress: others are shown its latest line.
        work: the stage.

    Raises:
        LeaseLost: this process was frozen, and another one took over; it has published nothing since.
    """
    tree = read_tree(recipe, assignments)
    refuse_renamed(tree)
    place = parse(
        _Place, typed(_Place, {k: v for k, v in tree.items() if k in _Place.model_fields}), ""
    )
    storage.configure(place.storage)
    root = storage.resolve(place.root)
    if not storage.exists(storage.join(root, "data", "dataset.json")):
        return work(None)  # the stage names what is missing; nothing is written

    def on_wait(holder: LeaseHolder, wait_s: float) -> None:
        progress.log(
            f"{stage}: {holder} shows no sign of life; taking over in {wait_s:.0f} s if none comes"
        )

    lease = acquire(
        root,
        stage,
        place.retrain.lease_s,
        progress=progress.latest,
        on_lost=lambda: os.kill(os.getpid(), signal.SIGTERM),
        on_wait=on_wait,
    )
    if isinstance(lease, Busy):
        return _answer(stage, root, lease, progress)
    try:
        with lease:
            return work(lease)
    except KeyboardInterrupt:
        if lease.is_lost:
            raise lease.loss() from None
        raise


def _answer(stage: str, root: str, busy: Busy, progress: ProgressDisplay) -> dict[str, Any]:
    """Say who works and how far it is."""
    doing = f": {busy.progress}" if busy.progress else ""
    progress.log(f"{stage}: {ALREADY_RUNNING}: {busy.holder} (lease {busy.number}){doing}")
    return {
        "stage": stage,
        "status": ALREADY_RUNNING,
        "output": root,
        "fingerprint": None,
        "holder": busy.holder.model_dump(include={"user", "host", "pid", "since"}),
        "lease": busy.number,
        "progress": busy.progress,
    }
