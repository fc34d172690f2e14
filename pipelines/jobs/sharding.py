"""The sharding job: Ray tasks write the planned shards; the driver publishes the dataset manifest last."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from cluster.metrics import RECORDER
from cluster.tasks import TaskOptions, run_tasks
from genmod import receipts, storage
from genmod.data.format.shards import ShardReceipt, quarantine_file
from genmod.data.sharding.finish import make_manifest
from genmod.data.sharding.ingest import make_shard
from genmod.data.sharding.plan import DatasetPlan, make_plan
from genmod.data.sharding.quarantine import check_quarantine, exceeds_quarantine
from genmod.data.sources.config import DataConfig
from genmod.documents import validate
from genmod.errors import ConfigError, DataError
from genmod.manifest import DatasetManifest, claim, find_done, publish, release_claim
from pipelines.jobs.progress import NO_PROGRESS, Progress

STALL_S = 1800.0
"""Longest time in seconds without a finished shard before the job gives up."""


def shard(
    data: DataConfig,
    root: str,
    *,
    seed: int,
    workers: int | None = None,
    wait_s: float = 0.0,
    progress: Progress = NO_PROGRESS,
    plan: DatasetPlan | None = None,
) -> DatasetManifest | None:
    """Write the dataset at ``root``, or what is missing of it. Ray is connected.

    Args:
        data: the recipe's section.
        root: URL of the dataset.
        seed: of the recipe.
        workers: shards written at the same time; default ``data.workers``, else all CPUs of the cluster.
        wait_s: how long to wait for resources that other jobs hold, in seconds.
        progress: receives rows that are done and rows in all.
        plan: the plan of this dataset, e.g. of the next version of another one; by default that of ``data``
            and ``seed``.

    Returns:
        The manifest, also of a dataset that was finished before; None if the plan extends a
            dataset that contains every row.

    Raises:
        ConfigError: the recipe does not fit the source, or ``root`` contains another dataset.
        DataError: the source is missing, or too many of its inputs are rejected.
        GenmodError: a task failed, or none finished for ``STALL_S`` seconds.
    """
    plan = plan or make_plan(data, seed)
    manifest = find_done(DatasetManifest, root, "dataset", plan.fingerprint)
    if manifest is not None:
        progress.update("shard", plan.rows, plan.rows, "images")
        return manifest
    is_repeated = plan.origin is not None and plan.origin.repeat > 0
    if plan.previous is not None and not plan.shards and not is_repeated:
        return None
    if plan.previous is not None:
        plan.previous.shared(root)  # raises if the folders do not fit
    options = _task_options(plan, workers or data.workers or _cpus(), wait_s)
    claim(root, plan.fingerprint)
    shard_receipts = _make_shards(plan, root, options, progress)
    rejected = [row for receipt in shard_receipts for row in receipt.rejected]
    quarantine = quarantine_file(root, [*plan.rejected, *rejected])
    new_rejected = [*plan.new_rejected, *rejected]
    try:
        check_quarantine(data, new_rejected, len(new_rejected), plan.rows + len(plan.new_rejected))
    except DataError:
        # Another recipe may use the folder; quarantine.parquet stays readable.
        release_claim(root, [planned.name for planned in plan.shards])
        raise
    with receipts.together(root):
        manifest = make_manifest(plan, root, shard_receipts, quarantine)
    return publish(root, manifest)


def _cpus() -> int:
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _task_options(plan: DatasetPlan, workers: int, wait_s: float) -> TaskOptions:
    """Each task requests the memory that it needs, so that a node runs no more tasks than fit.

    Raises:
        ConfigError: no node with CPUs has that much memory.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest = max((node.get("memory", 0) for node in nodes if node.get("CPU")), default=None)
    if largest is not None and plan.task_bytes > largest:
        raise ConfigError(
            f"writing a shard of {plan.source} takes {plan.task_bytes >> 20} MiB of memory, the largest "
            f"node has {int(largest) >> 20} MiB; set data.shard_rows lower, or split the source's files"
        )
    return TaskOptions(
        limit_hint="check the cluster (ray status), then run the same command again to resume",
        memory_bytes=plan.task_bytes,
        max_in_progress=workers,
        scheduling="SPREAD",
        wait_s=wait_s,
        stall_s=STALL_S,
    )


def _make_shards(
    plan: DatasetPlan, root: str, options: TaskOptions, progress: Progress
) -> list[ShardReceipt]:
    """Receipts of the shards in the plan's order; tasks write the shards that have none.

    Stops early when too many inputs are rejected; the later receipts are then missing.
    """
    names = [planned.name for planned in plan.shards]
    finished = receipts.load_receipts(ShardReceipt, root, names, plan.fingerprint)
    missing = {
        storage.join(root, planned.name): planned
        for planned in plan.shards
        if planned.name not in finished
    }
    num_rows = {planned.name: planned.rows for planned in plan.shards}

    def report() -> None:
        progress.update("shard", sum(num_rows[name] for name in finished), plan.rows, "images")

    report()
    calls = ((url, (plan.job(planned, root),)) for url, planned in missing.items())
    with closing(run_tasks(_make, calls, options)) as results:
        for url, result in results:
            finished[missing[url].name] = validate(
                ShardReceipt,
                result,
                "a receipt",
                f"the result of {url}",
                "run the same command again to resume",
            )
            report()
            RECORDER.add("genmod_units", stage="shard")
            RECORDER.add("genmod_quarantined", len(finished[missing[url].name].rejected), "shard")
            rejected = sum(len(receipt.rejected) for receipt in finished.values())
            new = len(plan.new_rejected)
            if exceeds_quarantine(plan.data, rejected + new, plan.rows + new):
                break
    return [finished[name] for name in names if name in finished]


def _make(job: dict[str, Any]) -> dict[str, Any]:
    """In the task: write one shard; its receipt as JSON values travels back."""
    return make_shard(job).model_dump(mode="json")
