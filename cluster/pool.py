"""A pool of actors in Ray Data that survives the loss of its workers.

Ray replaces a worker that is lost, and runs its unit again on another, without limit. Each attempt is noted
on Ray's head, so that a unit that loses one worker after the other ends instead, see :mod:`cluster.losses`.
A pool that Ray gives up, as when a host is cut off, is started again as long as units get finished.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cluster import ray_log
from cluster.compat import delete_values, put_value, read_values
from cluster.losses import UNIT_LOSSES, is_to_blame
from cluster.resources import NODE_LABEL, ResourceRequest
from genmod.errors import GenmodError

logger = logging.getLogger("genmod")

MARK, TASK, RESULT = "mark", "task", "result"
"""Columns of Ray Data: the key under which attempts are noted, the task and its result as JSON."""

_START_UP_S = 600.0
"""Time that processes and models may take to start, in seconds, in addition to the first task's deadline."""

_REASON_CHARS = 300
"""Of an error of Ray that are shown."""

_MAX_BLOCKS = 2_048
"""Ray Data blocks of the task list; in longer lists a block contains several tasks."""


@dataclass(frozen=True)
class Pool:
    """Actors of one class."""

    actor: Callable[..., Any]
    options: Mapping[str, Any]
    """Arguments of its constructor, with ``deadline_s``."""
    workers: int
    """Largest number of actors."""
    resources: ResourceRequest
    """What each actor requests."""
    excluded_nodes: tuple[str, ...] = ()
    """Ids of nodes on which no actor runs."""

    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """Variables of the actors' processes."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Ray's arguments for the place and the environment of the actors."""
        arguments: dict[str, Any] = {}
        labels = dict(self.resources.labels)
        if self.excluded_nodes:
            labels[NODE_LABEL] = f"!in({','.join(self.excluded_nodes)})"
        if labels:
            arguments["label_selector"] = labels
        if self.environment:
            arguments["runtime_env"] = {"env_vars": dict(self.environment)}
        return arguments


def stream(pool: Pool, tasks: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the result of each task, failed ones included, as they are finished.

    A pool that Ray gives up is started again for the tasks that are left, if tasks were done since its start.

    Raises:
        GenmodError: Ray gave a pool up that had done nothing.
    """
    launch = f"attempt/{uuid.uuid4().hex}/{len(tasks)}/"
    left = {f"{launch}{number}": task for number, task in enumerate(tasks)}
    try:
        while left:
            yield from _start(pool, left)
    finally:
        with suppress(Exception):
            delete_values(launch)


def _start(pool: Pool, left: dict[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield results until all tasks are finished or Ray gives the pool up after some were done.

    Args:
        pool: to start.
        left: mark -> task; those that are finished are removed.

    Raises:
        GenmodError: Ray gave the pool up, and no task was done.
    """
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError

    done = 0
    try:
        for row in _rows(pool, left):
            del left[row[MARK]]
            result = json.loads(row[RESULT])
            done += "error" not in result
            yield result
    except (RayError, ExecutionTimeoutError) as error:
        reason = " ".join((str(error).strip().splitlines() or [""])[-1].split())[:_REASON_CHARS]
        lost = f"the pool of {pool.workers} workers was lost ({type(error).__name__}: {reason})"
        if not done:
            raise GenmodError(
                f"{lost}; check the nodes, then run the same command again to resume{ray_log.hint()}"
            ) from error
        logger.warning("%s after %d units; starting it again for %d more", lost, done, len(left))


def lost_workers(mark: str) -> int:
    """Note that a worker starts a unit, and return how many workers it has cost; 0 if it is not to blame.

    A failure to note only hides a loss.
    """
    with suppress(Exception):
        put_value(f"{mark}/{uuid.uuid4().hex}", b"")
        if len(read_values(f"{mark}/")) <= UNIT_LOSSES:
            return 0
        launch, _, number = mark.rpartition("/")
        attempts = Counter(int(key.split("/")[-2]) for key in read_values(f"{launch}/"))
        if is_to_blame(int(number), attempts, num_units=int(launch.rpartition("/")[2])):
            return attempts[int(number)] - 1
    return 0


def _rows(pool: Pool, tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of Ray Data, with the result of each task and its mark.

    Ray's C++ core warns of arguments in the object store: Ray Data puts its context and the class with its
    options there once, whatever their size. The warning is in the log file alone.
    """
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext

    ray_log.take_loggers()
    workers = min(pool.workers, len(tasks))
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = pool.options["deadline_s"] + _START_UP_S
    rows = [{TASK: json.dumps(task), MARK: mark} for mark, task in tasks.items()]
    with DataContext.current(context):
        # Without max_restarts and max_task_retries Ray restarts actors and retries their tasks without limit.
        results = ray.data.from_items(
            rows, override_num_blocks=min(len(rows), _MAX_BLOCKS)
        ).map_batches(
            pool.actor,
            batch_size=1,
            fn_constructor_kwargs=dict(pool.options),
            compute=ActorPoolStrategy(
                min_size=1, max_size=workers, initial_size=workers, max_tasks_in_flight_per_actor=1
            ),
            num_cpus=pool.resources.cpus,
            num_gpus=pool.resources.gpus,
            **pool.arguments,
        )
    yield from results.iter_rows()
