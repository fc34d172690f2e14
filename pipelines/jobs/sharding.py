"""The sharding job: Ray tasks write the planned shards; the driver publishes the dataset manifest last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cluster.tasks import stop
from genmod import receipts
from genmod.data.format.shards import ShardReceipt, quarantine_file
from genmod.data.sharding.ingest import make_shard
from genmod.data.sharding.plan import (
    DatasetPlan,
    PlannedShard,
    ShardPlan,
    check_quarantine,
    exceeds_quarantine,
    make_manifest,
    make_plan,
)
from genmod.data.sharding.previous_version import load_previous_version
from genmod.data.sources.source import DataConfig
from genmod.errors import ConfigError, DataError, GenmodError
from genmod.manifest import DatasetManifest, claim, find_done, publish, release_claim

TRIES = 3
"""How often Ray runs a task again whose process died or whose store failed."""


WAIT_S = 5.0
"""How long the driver waits at a time."""


STALL_S = 1800.0
"""If no shard is finished for so long, the stage gives up."""


def nobody(done: int, total: int) -> None:
    """Progress that nobody watches."""


def plan_shard(data: DataConfig, root: str, seed: int) -> ShardPlan:
    """What the stage would do. Lists the source, writes nothing.

    Raises:
        ConfigError: the recipe asks for what is not there, or ``root`` holds another dataset.
        DataError: the source is not there, or too much of it cannot be used.
    """
    plan = make_plan(data, seed)
    find_done(DatasetManifest, root, "dataset", plan.fingerprint)
    return plan.summary()


def shard(
    data: DataConfig,
    root: str,
    *,
    seed: int,
    workers: int | None = None,
    progress: Callable[[int, int], None] = nobody,
    parent: DatasetManifest | None = None,
    parent_root: str | None = None,
    plan: DatasetPlan | None = None,
) -> DatasetManifest | None:
    """Make the dataset at ``root``, or what is missing of it. Ray is connected.

    Args:
        data: the recipe's section.
        root: URL of the dataset.
        seed: of the recipe.
        workers: shards made at the same time; ``data.workers`` if not given, else all CPUs of the cluster.
        progress: called with rows done and rows in all.
        parent: the dataset at ``parent_root`` that this one grows from. Only rows that it does not know are
            sharded, and its shards are shared.
        parent_root: URL of the parent.
        plan: of all this, if it is made already; it is made here if not given.

    Returns:
        The manifest, also if it was there already; None if there is nothing that the parent does not know.

    Raises:
        ConfigError: the recipe asks for what is not there, or ``root`` holds another dataset.
        DataError: the source is not there, or too much of it cannot be used.
        GenmodError: the tasks failed, or none finished for half an hour.
    """
    assert (parent is None) == (parent_root is None)
    plan = plan or make_plan(
        data, seed, load_previous_version(parent_root, parent) if parent and parent_root else None
    )
    done = find_done(DatasetManifest, root, "dataset", plan.fingerprint)
    if done is not None:
        progress(plan.rows, plan.rows)
        return done
    if plan.parent is not None and not plan.shards:
        return None
    task_bytes = _task_bytes(plan)
    claim(root, plan.fingerprint)
    made = _make_all(plan, root, workers or data.workers or _cpus(), task_bytes, progress)
    rejected = [row for receipt in made for row in receipt.rejected]
    quarantine = quarantine_file(root, [*plan.rejected, *rejected])
    own = [*plan.new_rejected, *rejected]
    try:
        check_quarantine(data, own, len(own), plan.rows + len(plan.new_rejected))
    except DataError:
        release_claim(
            root
        )  # another recipe may have the folder; quarantine.parquet stays, to be read
        raise
    return publish(root, make_manifest(plan, made, quarantine))


def _cpus() -> int:
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _task_bytes(plan: DatasetPlan) -> int:
    """What a task asks for, so that no more run on a node than its memory holds.

    Raises:
        ConfigError: no node that has CPUs has so much.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest = max((node.get("memory", 0) for node in nodes if node.get("CPU")), default=None)
    if largest is not None and plan.task_bytes > largest:
        raise ConfigError(
            f"making a shard of {plan.source} takes {plan.task_bytes >> 20} MiB, the largest node has "
            f"{int(largest) >> 20} MiB; set data.shard_rows lower, or cut up the source's files"
        )
    return plan.task_bytes


def _make_all(
    plan: DatasetPlan,
    root: str,
    at_once: int,
    task_bytes: int,
    progress: Callable[[int, int], None],
) -> list[ShardReceipt]:
    """Receipts in the plan's order; tasks make those that are missing. Not all if too much is refused."""
    names = [planned.name for planned in plan.shards]
    made = receipts.load_receipts(ShardReceipt, root, names, plan.fingerprint)
    missing = [planned for planned in plan.shards if planned.name not in made]
    rows = {planned.name: planned.rows for planned in plan.shards}
    progress(sum(rows[name] for name in made), plan.rows)
    for name, receipt in _run_tasks(plan, root, missing, at_once, task_bytes):
        made[name] = receipt
        progress(sum(rows[name] for name in made), plan.rows)
        rejected = sum(len(receipt.rejected) for receipt in made.values())
        own = len(plan.new_rejected)
        if exceeds_quarantine(plan.data, rejected + own, plan.rows + own):
            break
    return [made[name] for name in names if name in made]


def _run_tasks(
    plan: DatasetPlan, root: str, missing: Sequence[PlannedShard], at_once: int, task_bytes: int
) -> Iterator[tuple[str, ShardReceipt]]:
    """Name and receipt of each shard as it is finished; never more than ``at_once`` are under way."""
    import ray  # here, so that a plan can be made without the seconds that this takes

    task = ray.remote(
        num_cpus=1,
        memory=task_bytes,
        scheduling_strategy="SPREAD",
        max_retries=TRIES,
        retry_exceptions=[OSError],
    )(_make)
    waiting = iter(missing)
    in_progress: dict[Any, str] = {}
    last_s = time.monotonic()
    try:
        while True:
            while len(in_progress) < at_once and (planned := next(waiting, None)) is not None:
                in_progress[task.remote(plan.job(planned, root))] = planned.name
            if not in_progress:
                return
            finished, _ = ray.wait(list(in_progress), num_returns=1, timeout=WAIT_S)
            for reference in finished:
                name = in_progress.pop(reference)
                yield name, ShardReceipt.model_validate(_result(reference, f"{root}/{name}"))
                last_s = time.monotonic()
            if time.monotonic() - last_s > STALL_S:
                stuck = ", ".join(sorted(in_progress.values())[:3])
                raise GenmodError(
                    f"{root}: no shard was finished for {STALL_S:.0f} s, under way: {stuck}; "
                    "look at the cluster (ray status), then run again: what is done stays done"
                )
    except (Exception, GeneratorExit):
        stop(in_progress)
        raise


def _result(reference: Any, where: str) -> Any:
    """What a task gave. A person's mistake comes as it is, anything else in one line."""
    import ray

    try:
        return ray.get(reference, timeout=60)
    except (ray.exceptions.RayError, GenmodError, OSError) as error:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, GenmodError):
            raise cause from None
        reason = " ".join(str(cause).split())[-300:] or type(cause).__name__
        raise GenmodError(f"{where} could not be made ({reason}); run again to go on") from error


def _make(job: dict[str, Any]) -> dict[str, Any]:
    return make_shard(job).model_dump(mode="json")
