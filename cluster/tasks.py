"""Ray tasks of one job: submits them, yields their results as they finish, and ends them after an error."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeVar, cast

from cluster.resources import ResourceRequest, free_workers, wait_until_free
from genmod.errors import GenmodError

T = TypeVar("T")

GRACE_S = 20.0
"""How long running tasks may take to end after an error, in seconds, before their workers are killed."""

_RETRIES = 3
"""How often Ray repeats a task whose process died or whose storage failed."""

_WAIT_S = 5.0
"""Longest wait for a finished task, in seconds, between two checks of the time limits."""

_FETCH_S = 60.0
"""Longest wait for the result of a finished task, in seconds."""


@dataclass(frozen=True)
class TaskOptions:
    """Resources and time limits of the tasks of one job."""

    limit_hint: str
    """What to do when a time limit passes; the end of the error message."""
    cpus: float = 1
    """Logical CPUs of one task."""
    memory_bytes: int | None = None
    """Memory of one task, which limits how many run on a node."""
    max_in_progress: int | None = None
    """Tasks that are submitted at the same time; all if None."""
    scheduling: Literal["DEFAULT", "SPREAD"] = "DEFAULT"
    """Ray's strategy: ``SPREAD`` uses all nodes evenly."""
    wait_s: float = 0.0
    """How long the first task waits for resources that other jobs hold, in seconds; 15 s at least."""
    stall_s: float = float("inf")
    """Longest time in seconds without a finished task."""
    deadline_s: float = float("inf")
    """Longest time in seconds for all tasks together."""
    grace_s: float = GRACE_S
    """How long running tasks may take to end after an error, in seconds."""


def run_tasks(
    function: Callable[..., T], calls: Iterable[tuple[str, tuple[Any, ...]]], options: TaskOptions
) -> Generator[tuple[str, T]]:
    """Call a function once per work unit in Ray tasks. Ray is connected.

    Ray repeats a task whose process dies or that raises OSError, so the function must be idempotent. After an
    error, and when the caller stops iterating, running tasks are ended as :func:`stop` describes. If another
    job holds the resources, a line says so, and the first task waits as long as the options say.

    Args:
        function: of a module that workers can import.
        calls: what to call it with: a name for messages, usually a URL, and the arguments. Arguments are
            computed only when their task is submitted.
        options: resources and time limits.

    Yields:
        Name and result of each task, in the order in which they finish.

    Raises:
        GenmodError: a task's own GenmodError as it is; any other error as one line; a time limit passed.
    """
    import ray  # here, because it takes seconds and finished work does not need it

    task = cast(Any, ray).remote(
        num_cpus=options.cpus,
        memory=options.memory_bytes,
        scheduling_strategy=options.scheduling,
        max_retries=_RETRIES,
        retry_exceptions=[OSError],
    )(function)
    waiting = iter(calls)
    if (first := next(waiting, None)) is None:
        return
    _wait_until_free(options)
    waiting = chain([first], waiting)
    in_progress: dict[Any, str] = {}
    limits = _Limits(options)
    try:
        while True:
            # Submit tasks up to the limit.
            while options.max_in_progress is None or len(in_progress) < options.max_in_progress:
                if (call := next(waiting, None)) is None:
                    break
                name, arguments = call
                in_progress[task.remote(*arguments)] = name
            if not in_progress:
                return
            # Wait for one of them, then yield its result or raise its error.
            finished, _ = ray.wait(list(in_progress), num_returns=1, timeout=_WAIT_S)
            for reference in finished:
                name = in_progress.pop(reference)
                yield name, _result(reference, name)
                limits.finished()
            limits.check(in_progress.values())
    except (Exception, GeneratorExit):
        stop(in_progress, options.grace_s)
        raise


def _wait_until_free(options: TaskOptions) -> None:
    """Wait until one task fits next to other jobs.

    An empty task requests its resources meanwhile, so that clusters scale up.

    Raises:
        GenmodError: the resources are not free in time.
    """
    import ray

    memory_bytes = options.memory_bytes or 0
    request = ResourceRequest("cpu", options.cpus, 0, options.wait_s, memory_bytes)
    if free_workers(request):
        return
    remote = cast(Any, ray).remote(num_cpus=options.cpus, memory=options.memory_bytes)
    demand = remote(_do_nothing).remote()
    try:
        wait_until_free(request, 1, "one task", lambda: bool(ray.wait([demand], timeout=0)[0]))
    except GenmodError:
        ray.cancel(demand)
        raise


def _do_nothing() -> None:
    """In a task: occupy its resources for a moment."""


class _Limits:
    """The time limits of a job, from the submission of its first task."""

    def __init__(self, options: TaskOptions) -> None:
        self._options = options
        self._start_s = self._last_s = time.monotonic()

    def finished(self) -> None:
        """A task has finished just now."""
        self._last_s = time.monotonic()

    def check(self, unfinished: Collection[str]) -> None:
        """Raise GenmodError if tasks are unfinished and a limit has passed."""
        options, now_s = self._options, time.monotonic()
        if not unfinished:
            return
        names = ", ".join(sorted(unfinished)[:3])
        if now_s - self._last_s > options.stall_s:
            raise GenmodError(
                f"no task finished for {options.stall_s:g} s, unfinished: {names}; {options.limit_hint}"
            )
        if now_s - self._start_s > options.deadline_s:
            raise GenmodError(
                f"tasks did not finish in {options.deadline_s:g} s, unfinished: {names}; "
                f"{options.limit_hint}"
            )


def _result(reference: Any, name: str) -> Any:
    """A task's result. Raises its own GenmodError as it is, anything else as one line."""
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(reference, timeout=_FETCH_S)
    except (RayError, GenmodError, OSError) as error:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, GenmodError):
            raise cause from None
        reason = " ".join(str(cause).split())[-300:] or type(cause).__name__
        raise GenmodError(
            f"{name}: the task failed ({reason}); run the same command again to resume"
        ) from error


def stop(references: Collection[Any], grace_s: float = GRACE_S) -> None:
    """Wait for running tasks to end; kill the workers of those that take longer than the grace period.

    Tasks that end soon are not cancelled, because Ray's driver dies if a task ends while it is being
    cancelled (Ray 2.60, "Tried to complete task that was not pending"). The others are cancelled with force,
    because a busy worker may miss a plain cancellation and run to its end.

    Args:
        references: Ray's references to the results of the tasks.
        grace_s: time for all of them together, in seconds.
    """
    if not references:
        return
    import ray

    _, unfinished = ray.wait(
        list(references),
        num_returns=len(references),
        timeout=grace_s,
    )
    for reference in unfinished:
        ray.cancel(reference, force=True)
