"""The shard stage: Ray tasks make the planned shards, one each; the driver signs the dataset, last."""

from __future__ import annotations

import time

from genmod import storage
from genmod.config import as_json
from genmod.manifest import MANIFEST_NAMES, DatasetManifest, find_done, load_manifest
from pipelines.jobs.sharding import shard
from pipelines.recipe.context import Context, Result


def stage(context: Context) -> Result:
    """The command: the recipe's dataset, or its next version."""
    start_s = time.monotonic()
    recipe, root = context.recipe, context.at("data")
    made = load_manifest(DatasetManifest, root, "dataset")
    if made is not None and recipe.data.append:
        return _append(context, start_s)
    plan = context.dataset_plan
    find_done(DatasetManifest, root, "dataset", plan.fingerprint)
    new = made is None
    run = context.tracker.run("shard", "data", plan.fingerprint, as_json(recipe.data), {})
    if made is None:
        storage.check_writable(recipe.root)
        context.connect()
        made = shard(recipe.data, root, seed=recipe.seed, progress=context.progress, plan=plan)
        assert made is not None, "only growing a dataset can come to nothing"
    run.log_metrics({f"rows/{split}": float(rows) for split, rows in plan.rows_by_split.items()}, 0)
    run.log_artifact(storage.join(root, MANIFEST_NAMES["dataset"]))
    run.finish("FINISHED", {"digest": made.digest, "root": root})
    _tell_refused(context, made, root)
    return context.result("shard", start_s, new, root, made, digest=made.digest)


def _append(context: Context, start_s: float) -> Result:
    """The dataset's next version, of what is new; nothing if nothing is."""
    from pipelines.stages.dataset_versions import NOTHING_NEW, grow, versions

    version = grow(context)
    newest = version or versions(context)[-1]
    root = storage.join(newest.root, "data")
    metadata = {"version": newest.number, "digest": newest.data.digest}
    if version is not None:
        _tell_refused(context, version.data, root)
        return context.result("shard", start_s, True, root, version.data, **metadata)
    context.progress.log(
        f"shard: {NOTHING_NEW} in {context.recipe.data.source} since version {newest.number}"
    )
    answer = {"stage": "shard", "status": NOTHING_NEW, "output": root}
    return answer | {"fingerprint": newest.data.fingerprint, **metadata}


def _tell_refused(context: Context, made: DatasetManifest, root: str) -> None:
    if made.quarantined:
        context.progress.log(
            f"shard: {made.quarantined} inputs were refused; {root}/quarantine.parquet says why"
        )
