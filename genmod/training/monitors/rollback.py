"""A look at samples, and what follows from it for the training state."""

from __future__ import annotations

from genmod import storage
from genmod.config import canonical_json
from genmod.errors import TrainingDiverged
from genmod.training.monitors.collapse import CollapseMonitor, collapse_problems, record_check
from genmod.training.state import TrainState
from genmod.training.step_metrics import HINT
from genmod.training.writer import storage_errors
from genmod.world import World

COLLAPSE_FILE = "collapse.json"
"""Below a model's root: what looks at samples found and what was done, newest state."""


def run_collapse_monitor(
    samples: CollapseMonitor, state: TrainState, world: World, root: str | None
) -> dict[str, float]:
    """Compare samples with data; on a collapse go back to the best weights, or fail. All ranks come here.

    Raises:
        TrainingCollapsed: on all ranks alike, if the recipe allows no further way back.
        StorageError: the store did not take what was seen.
    """
    found = samples.measure(state.ema, world)
    watch, config, nimg = state.monitor_state, samples.config, state.nimg
    told = collapse_problems(config, watch.best_coverage, found, nimg)
    collapsed = record_check(watch, config, told, nimg)
    if not watch.bad_checks:
        state.record_best(found)
    try:
        if collapsed:
            state.rollback(config)
    finally:
        _write_events(state, world, root)
    told_of = found | {"retries": float(watch.retried)}
    return {f"samples/{name}": value for name, value in told_of.items()}


def handle_divergence(
    error: TrainingDiverged,
    samples: CollapseMonitor | None,
    state: TrainState,
    world: World,
    root: str | None,
) -> None:
    """A number is not finite: where samples are watched, a collapse that needs no second look.

    Raises:
        TrainingDiverged: the same error, where nobody watches.
        TrainingCollapsed: on all ranks alike, if the recipe allows no further way back.
        StorageError: the store did not take what was seen.
    """
    if samples is None:
        raise error
    state.monitor_state.events.append(str(error).removesuffix(f"; {HINT}"))
    try:
        state.rollback(samples.config)
    finally:
        _write_events(state, world, root)


def _write_events(state: TrainState, world: World, root: str | None) -> None:
    if root is not None and world.rank == 0:
        told = canonical_json(state.monitor_state.as_json())
        with storage_errors(root, f"what samples at {state.nimg:,} images were like"):
            storage.write_bytes(storage.join(root, COLLAPSE_FILE), told)
