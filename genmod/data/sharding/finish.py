"""Builds the manifest of a dataset whose planned shards are all written."""

from __future__ import annotations

from collections.abc import Sequence

from genmod.data.format.shards import ShardReceipt
from genmod.data.sharding.plan import DatasetPlan
from genmod.data.sharding.quarantine import count_reasons
from genmod.manifest import SPLITS, DatasetManifest, FileEntry, Split
from genmod.manifest.statistics import RowStats, dataset_metadata


def make_manifest(
    plan: DatasetPlan, root: str, receipts: Sequence[ShardReceipt], quarantine: FileEntry
) -> DatasetManifest:
    """Build the manifest of a dataset.

    Args:
        plan: plan of the dataset.
        root: URL of its folder.
        receipts: receipts of all planned shards, in the plan's order.
        quarantine: the written list of rejected inputs.

    Raises:
        ConfigError: the previous version is in another place, see :mod:`genmod.manifest.folders`.
    """
    previous = plan.previous
    shared, folders = previous.shared(root) if previous else ((), ())
    stats: dict[Split, RowStats] = {}
    for split in SPLITS:
        parts = [r.metadata for r in receipts if r.metadata and r.shard and r.shard.split == split]
        total = sum(parts, previous.row_stats(split) if previous else RowStats())
        if total.rows:
            stats[split] = total
    rejected = [*plan.rejected, *(row for receipt in receipts for row in receipt.rejected)]
    number = previous.version + 1 if previous else 1
    origin = {} if plan.origin is None else {"reason": plan.origin.reason}
    if plan.origin is not None:
        number = plan.origin.number
        origin |= {"repeat": plan.origin.repeat} if plan.origin.repeat else {}
    return DatasetManifest(
        fingerprint=plan.fingerprint,
        parents=plan.parents,
        files=(quarantine,),
        metadata={
            "version": number,
            "source": plan.source,
            **origin,
            **({"contents": plan.contents} if plan.contents else {}),
            **dataset_metadata(stats),
            "census": plan.census.as_metadata(),
            "rejected": count_reasons(rejected),
        },
        spec=plan.spec,
        shards=(*shared, *(receipt.shard for receipt in receipts if receipt.shard)),
        folders=folders,
        quarantined=len(rejected),
        class_names=plan.class_names,
    )
