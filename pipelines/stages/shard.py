"""The shard stage: Ray tasks write the planned shards, one each; the driver publishes the manifest last."""

from __future__ import annotations

import time
from typing import Any, cast

from cluster.session import wait_s
from genmod import storage
from genmod.config import as_json
from genmod.data.sharding.census_text import census_lines
from genmod.manifest import MANIFEST_NAMES, DatasetManifest
from pipelines.jobs.sharding import shard
from pipelines.recipe.context import Context, Result
from pipelines.stages.dataset_versions import NOTHING_NEW, append_version, is_sharded, versions


def stage(context: Context) -> Result:
    """Run the command: write the recipe's dataset, or with ``data.append`` its next version."""
    start_s = time.monotonic()
    recipe, root = context.recipe, context.at("data")
    if recipe.data.append and is_sharded(context):
        return _append(context, start_s)
    plan = context.dataset_plan
    manifest = context.snapshot.find_done(DatasetManifest, root, "dataset", plan.fingerprint)
    worked = manifest is None
    run = context.tracker.run("shard", "data", plan.fingerprint, as_json(recipe.data), {})
    for line in census_lines(plan.census):
        context.progress.log(f"  {line}")
    if manifest is None:
        storage.check_writable(recipe.root)
        context.connect()
        manifest = shard(
            recipe.data,
            root,
            seed=recipe.seed,
            wait_s=wait_s(recipe.cluster),
            progress=context.progress,
            plan=plan,
        )
        assert manifest is not None, "only a next version can have no new rows"
        context.snapshot.add(root, manifest)
    run.log_metrics({f"rows/{split}": float(rows) for split, rows in plan.rows_by_split.items()}, 0)
    run.log_artifact(storage.join(root, MANIFEST_NAMES["dataset"]))
    run.finish("FINISHED", {"digest": manifest.digest, "root": root})
    _log_rejected(context, manifest, root)
    census = plan.census.model_dump(mode="json")
    return context.result(
        "shard", start_s, worked, root, manifest, digest=manifest.digest, census=census
    )


def _append(context: Context, start_s: float) -> Result:
    """Write the dataset's next version; nothing if the source has no new rows."""
    version = append_version(context)
    newest = version or versions(context)[-1]
    root = storage.join(newest.root, "data")
    metadata = {"version": newest.number, "digest": newest.data.digest}
    if version is not None:
        _log_rejected(context, version.data, root)
        return context.result("shard", start_s, True, root, version.data, **metadata)
    context.progress.log(
        f"shard: {NOTHING_NEW} in {context.recipe.data.source} since version {newest.number}"
    )
    result = {"stage": "shard", "status": NOTHING_NEW, "output": root}
    return result | {"fingerprint": newest.data.fingerprint, **metadata}


def _reasons(manifest: DatasetManifest) -> str:
    """Number of rejected inputs by reason; empty if the manifest does not count them."""
    counts = manifest.metadata.get("rejected")
    if not isinstance(counts, dict):
        return ""
    pairs = [*cast("dict[str, Any]", counts).items()][:5]
    return f" ({', '.join(f'{count} {reason}' for reason, count in pairs)})" if pairs else ""


def _log_rejected(context: Context, manifest: DatasetManifest, root: str) -> None:
    if manifest.quarantined:
        context.progress.log(
            f"shard: {manifest.quarantined} inputs were rejected{_reasons(manifest)}; "
            f"{root}/quarantine.parquet lists each"
        )
