"""Runs the collapse monitor and applies its result to the training state."""

from __future__ import annotations

from genmod import storage
from genmod.config import canonical_json
from genmod.errors import TrainingDiverged
from genmod.training.monitors.collapse import CollapseMonitor, collapse_problems, record_check
from genmod.training.state import TrainState
from genmod.training.writer import storage_errors
from genmod.world import World

COLLAPSE_FILE = "collapse.json"
"""File below a model's root with the newest state of the monitors, for people."""


def run_collapse_monitor(
    monitor: CollapseMonitor, state: TrainState, world: World, root: str | None
) -> dict[str, float]:
    """Check samples; on a collapse, roll back to the best EMA weights. Collective.

    Returns:
        The metrics to log, named ``samples/...``.

    Raises:
        TrainingCollapsed: on all ranks alike, if no rollback is left.
        StorageError: the monitor's state cannot be written.
    """
    statistics = monitor.evaluate(state.ema, world)
    monitors, config, nimg = state.monitor_state, monitor.config, state.nimg
    problems = collapse_problems(config, monitors.best_coverage, statistics, nimg)
    collapsed = record_check(monitors, config, problems, nimg)
    if not problems:
        state.record_best(statistics["coverage"])
    try:
        if collapsed:
            state.rollback(config)
    finally:
        _write_state(state, world, root)
    metrics = statistics | {"rollbacks": float(monitors.rollbacks)}
    return {f"samples/{name}": value for name, value in metrics.items()}


def handle_divergence(
    error: TrainingDiverged,
    monitor: CollapseMonitor | None,
    state: TrainState,
    world: World,
    root: str | None,
) -> None:
    """Treat a value that is not finite as a collapse: roll back at once, or raise without a monitor.

    Raises:
        TrainingDiverged: the same error with the family's hint, if there is no monitor.
        TrainingCollapsed: on all ranks alike, if no rollback is left.
        StorageError: the monitor's state cannot be written.
    """
    if monitor is None:
        raise TrainingDiverged(f"{error}; {state.model.hint('diverged')}") from error
    state.monitor_state.events.append(str(error))
    try:
        state.rollback(monitor.config)
    finally:
        _write_state(state, world, root)


def _write_state(state: TrainState, world: World, root: str | None) -> None:
    if root is not None and world.rank == 0:
        url = storage.join(root, COLLAPSE_FILE)
        with storage_errors(url, f"the monitor's state at {state.nimg:,} images"):
            storage.write_bytes(url, canonical_json(state.monitor_state.as_json()))
