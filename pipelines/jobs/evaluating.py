"""The evaluation job: runs feature and evaluation jobs as Ray tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from cluster.tasks import stop
from genmod.errors import GenmodError
from genmod.evaluation.jobs import EvaluationJob, FeaturesJob

TRIES = 3
"""How often Ray runs a task again whose process died or whose store failed."""


WAIT_S = 5.0
"""How long the driver waits at a time."""


Job = FeaturesJob | EvaluationJob
"""A unit of work that knows whether it is done and how to do it."""


def missing(jobs: Sequence[Job]) -> list[Job]:
    """The jobs that are still to do. ConfigError if a folder holds other work."""
    return [job for job in jobs if job.done() is None]


def do_all(
    jobs: Sequence[Job],
    connect: Callable[[], None],
    cpus: float,
    on_done: Callable[[int], None] = lambda done: None,
) -> None:
    """Do jobs as Ray tasks, at the same time where there is room. They write their results themselves.

    Args:
        jobs: independent of one another.
        connect: connects to Ray.
        cpus: that a task asks for.
        on_done: called with the number of jobs that are done.

    Raises:
        GenmodError: a job failed, or took longer than its deadline.
    """
    connect()
    import ray  # here, so that a stage that is done need not wait for it

    task = ray.remote(num_cpus=cpus, max_retries=TRIES, retry_exceptions=[OSError])(_do)
    names = {task.remote(job, max(1, int(cpus))): job for job in jobs}
    in_progress = list(names)
    deadline_s = time.monotonic() + sum(job.config.deadline_s for job in jobs)
    on_done(0)
    try:
        while in_progress:
            finished, in_progress = ray.wait(in_progress, num_returns=1, timeout=WAIT_S)
            for reference in finished:
                _result(reference, names[reference].out_root)
                on_done(len(jobs) - len(in_progress))
            if in_progress and time.monotonic() > deadline_s:
                raise GenmodError(
                    f"{names[in_progress[0]].out_root} was not finished in evaluate.deadline_s="
                    f"{jobs[0].config.deadline_s:g}; give it more, or look at the cluster (ray status)"
                )
    except Exception:
        stop(in_progress)
        raise


def _do(job: Job, threads: int) -> str:
    """In the task: do the job; its digest is all that travels back."""
    import torch

    torch.set_num_threads(threads)
    return job.do().digest


def _result(reference: Any, where: str) -> str:
    """What a task gave. A person's mistake comes as it is, anything else as one line."""
    import ray

    try:
        return ray.get(reference, timeout=60)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, GenmodError):
            raise cause from None
        reason = " ".join(str(cause).split())[-300:] or type(cause).__name__
        raise GenmodError(f"{where} could not be made ({reason}); run again to go on") from error
