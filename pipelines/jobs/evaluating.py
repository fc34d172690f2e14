"""The evaluation job: runs feature and evaluation jobs as Ray tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cluster.session import ClusterConfig, wait_s
from cluster.tasks import TaskOptions, run_tasks
from genmod.evaluation.comparison import ComparisonJob
from genmod.evaluation.features_job import FeaturesJob
from genmod.evaluation.jobs import EvaluationJob
from genmod.scoring.drift_job import DriftJob
from pipelines.jobs.progress import NO_PROGRESS, Progress

EvaluationWork = FeaturesJob | EvaluationJob | ComparisonJob | DriftJob
"""A job of the evaluation, which does itself."""


def run_evaluations(
    jobs: Sequence[EvaluationWork],
    connect: Callable[[], None],
    cluster: ClusterConfig,
    progress: Progress = NO_PROGRESS,
    finished: int = 0,
) -> None:
    """Run jobs as Ray tasks, in parallel as far as the cluster's CPUs allow.

    Args:
        jobs: independent of one another; none of them is done.
        connect: connects to Ray.
        cluster: CPUs of one task, and how long to wait for them.
        progress: receives models that are done and models in all.
        finished: models that were done before.

    Raises:
        GenmodError: a job failed, or the jobs took longer than the sum of their deadlines.
    """
    if not jobs:
        return
    connect()
    total = finished + len(jobs)
    options = TaskOptions(
        limit_hint="set evaluate.deadline_s higher, or check the cluster (ray status)",
        cpus=cluster.cpus_per_worker,
        wait_s=wait_s(cluster),
        deadline_s=sum(job.config.deadline_s for job in jobs),
    )
    progress.update("evaluate", finished, total, "models")
    calls = ((job.out_root, (job, max(1, int(cluster.cpus_per_worker)))) for job in jobs)
    for count, _ in enumerate(run_tasks(_run, calls, options), finished + 1):
        progress.update("evaluate", count, total, "models")


def _run(job: EvaluationWork, threads: int) -> str:
    """In the task: run the job; only its digest travels back."""
    import torch

    torch.set_num_threads(threads)
    return job.do().digest
