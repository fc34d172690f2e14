"""The manifest of a synthetic dataset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from genmod.config import as_json
from genmod.data.format.shards import quarantine_file
from genmod.generation.rejected import write_rejected
from genmod.generation.request import SampleRequest
from genmod.generation.sets import SampleSet, SampleShard, list_shards, shards_file, stream_of
from genmod.generation.synthetic import SAMPLE_SPLIT
from genmod.generation.unit import SampleReceipt
from genmod.manifest import DatasetManifest, RowStats, dataset_metadata
from pipelines.jobs.sample_plan import SamplePlan


def sample_manifest(
    plan: SamplePlan,
    sets: Sequence[SampleSet],
    request: SampleRequest,
    shards: Sequence[SampleShard],
    *,
    receipts: Sequence[SampleReceipt],
    rejected: Iterable[tuple[int, str]] | None,
) -> DatasetManifest:
    """Write the lists of a dataset and return its manifest, which is not published yet.

    Args:
        plan: of the job.
        sets: datasets of the stream whose shards may be shared.
        request: the images of the dataset, all of those of the plan or a part.
        shards: with these images, in any order.
        receipts: of the job's own units.
        rejected: index and reason of each rejected image; None without filters.
    """
    lanes = request.lanes
    in_order = sorted(shards, key=lambda shard: shard.first_index(lanes))
    entries, folders = list_shards(plan.out_root, in_order)
    files = [shards_file(plan.out_root, in_order)]
    quarantined: list[tuple[int, str]] = []
    if rejected is None:
        quarantined = sorted(row for receipt in receipts for row in receipt.quarantined)
    else:  # images that are not finite are among the rejected ones
        files.append(write_rejected(plan.out_root, plan.labels, rejected))
    if quarantined:
        rows = [(f"{index:09d}", str(index), reason) for index, reason in quarantined]
        files.append(quarantine_file(plan.out_root, rows))
    stats = sum((shard.stats for shard in in_order), RowStats())
    metadata = dataset_metadata({SAMPLE_SPLIT: stats} if in_order else {})
    metadata["sample"] = _settings(plan, sets, receipts)
    parents = {"model": plan.model_digest}
    if folders:
        digests = {each.root: each.manifest.digest for each in sets}
        parents["dataset"] = next(
            digests[shard.folder] for shard in in_order if shard.folder != plan.out_root
        )
    return DatasetManifest(
        fingerprint=request.fingerprint(plan.stream),
        parents=parents,
        files=tuple(files),
        metadata=metadata,
        spec=plan.spec,
        shards=entries,
        folders=folders,
        quarantined=len(quarantined),
        class_names=plan.class_names,
    )


def _settings(
    plan: SamplePlan, sets: Sequence[SampleSet], receipts: Sequence[SampleReceipt]
) -> dict[str, Any]:
    """What the manifest says about how its images were generated."""
    keys = {"name", "family", "options", "sampler", "draws_from_p", "only_label", "seed", "stream"}
    settings = {key: value for key, value in as_json(plan).items() if key in keys}
    if plan.empty_classes:
        settings["empty_classes"] = list(plan.empty_classes)
    if plan.class_block:
        settings["class_block"] = plan.class_block
    numerics = {receipt.numerics for receipt in receipts if receipt.numerics}
    numerics |= {each for other in sets for each in stream_of(other.manifest).numerics}
    settings["numerics"] = sorted(numerics)
    return settings | plan.config.stream() | {"labels": plan.labels.rule}
