"""The plan of a dataset: split, shard, index and key of every row of the source.

A pure function of the recipe's ``data``, the seed, the source's listing and the previous version. Letters:
M rows of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genmod.config import Config, fingerprint
from genmod.data.format.codecs import Codec, Rejected, to_spec
from genmod.data.format.shards import RowStats, ShardReceipt, dataset_metadata
from genmod.data.format.tar import BLOCK
from genmod.data.sharding.catalog import CATALOG_CHUNK_ROWS, Catalog, RejectedRow, SlotsAndGroups
from genmod.data.sharding.disk_buckets import Groups, RowLine
from genmod.data.sharding.previous_version import PreviousVersion
from genmod.data.sharding.quarantine import check_quarantine
from genmod.data.sharding.resolve import resolve_spec
from genmod.data.sources.registry import open_source
from genmod.data.sources.source import DataConfig, Scan, pixels_of
from genmod.errors import DataError
from genmod.manifest import FORMAT, SPLITS, DatasetManifest, FileEntry, ImageSpec, Split
from genmod.permutation import shuffle

_SHARD_ROWS, _SHARD_BYTES = 2048, 32 << 20
"""Default limits of a shard: rows, and bytes of pixels."""

_SAMPLE_ROWS = 16
"""Rows that are encoded to estimate the size of all rows."""

_TASK_BYTES = 512 << 20
"""Memory of a task apart from its shard: imports, prefetched files, one large image."""

_TAR_ROW_BYTES = 4 * BLOCK
"""Bytes of a row in a tar in addition to its pixels."""


class ShardPlan(Config):
    """Summary of a dataset's plan."""

    source: str
    spec: ImageSpec
    rows: int
    rows_by_split: dict[str, int]
    rejected: int
    """Inputs rejected before any image is decoded."""
    shards: int
    size_bytes: int
    """Estimated size of the tars."""
    fingerprint: str
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedShard:
    """One shard to write."""

    name: str
    split: Split
    rows: int
    first_index: int
    """Index in the split of the first row; the other rows follow."""
    group: int
    """Group that contains the shard's rows."""
    first_line: int
    """Number of the shard's first row in the group."""


@dataclass(frozen=True)
class DatasetPlan:
    """All shards to write. The rows are on disk, not in memory."""

    fingerprint: str
    source: str
    """``KIND:WHERE``, absolute."""
    scan: Scan
    data: DataConfig
    spec: ImageSpec
    class_names: tuple[str, ...]
    class_numbers: tuple[int, ...]
    """Class number for each class number of the catalog, if classes have names."""
    shards: tuple[PlannedShard, ...]
    rejected: tuple[RejectedRow, ...]
    """Inputs rejected by the previous version and by this plan."""
    parents: dict[str, str]
    """Digests of the source and of the previous version."""
    previous: PreviousVersion | None
    groups: Groups

    @property
    def rows(self) -> int:
        """Number of rows of all shards to write."""
        return sum(shard.rows for shard in self.shards)

    @property
    def rows_by_split(self) -> dict[str, int]:
        """Number of rows to write for each split."""
        return {split: sum(s.rows for s in self.shards if s.split == split) for split in SPLITS}

    @property
    def new_rejected(self) -> tuple[RejectedRow, ...]:
        """Inputs rejected by this plan, without those of the previous version."""
        return self.rejected[len(self.previous.rejected) if self.previous else 0 :]

    def job(self, shard: PlannedShard, root: str) -> dict[str, Any]:
        """Describe a shard to write, as JSON values of a :class:`~genmod.data.sharding.ingest.ShardJob`."""
        lines = self.lines(shard)
        labels = [line.label for line in lines] if self.spec.classes else None
        if labels and self.class_numbers:
            labels = [self.class_numbers[label] for label in labels]
        return {
            "root": root,
            "name": shard.name,
            "split": shard.split,
            "first_index": shard.first_index,
            "fingerprint": self.fingerprint,
            "spec": self.spec.model_dump(mode="json"),
            "resize": self.data.resize,
            "source": self.source,
            "source_fingerprint": self.scan.fingerprint,
            "refs": [line.ref for line in lines],
            "names": [line.name for line in lines],
            "labels": labels,
        }

    def lines(self, shard: PlannedShard) -> list[RowLine]:
        """Read the rows of a shard, in order."""
        return self.groups.rows(shard.group, shard.first_line, shard.rows)

    @property
    def task_bytes(self) -> int:
        """Memory of a task: pixels and tar of the largest shard, and the largest fetch."""
        rows = max((shard.rows for shard in self.shards), default=0)
        shard_bytes = rows * (self.spec.dims + _TAR_ROW_BYTES)
        return _TASK_BYTES + 3 * shard_bytes + 2 * self.scan.max_fetch_bytes

    def summary(self) -> ShardPlan:
        """Summarise the plan for ``--dry-run``; encodes some rows to estimate the size."""
        return ShardPlan(
            source=self.source,
            spec=self.spec,
            rows=self.rows,
            rows_by_split=self.rows_by_split,
            rejected=len(self.rejected),
            shards=len(self.shards),
            size_bytes=self.rows * self._row_bytes(),
            fingerprint=self.fingerprint,
            class_names=self.class_names,
        )

    def _row_bytes(self) -> int:
        """Estimate the size of a row: headers, the label, and the mean of a few images, in whole blocks."""
        if not self.shards:
            return 0
        lines = self.lines(self.shards[0])
        refs = [line.ref for line in lines[:: -(-len(lines) // _SAMPLE_ROWS)]]
        codec, sizes = Codec(self.spec), [0]
        for image in open_source(self.source).fetch(refs, self.scan.fingerprint):
            with suppress(Rejected):
                image_HWC = to_spec(pixels_of(image), self.spec, self.data.resize)
                sizes.append(-(-len(codec.encode(image_HWC)) // BLOCK) * BLOCK)
        label = 2 * BLOCK if self.spec.classes else 0
        return BLOCK + label + sum(sizes) // max(1, len(sizes) - 1)


def make_plan(data: DataConfig, seed: int, previous: PreviousVersion | None = None) -> DatasetPlan:
    """List the source and plan its dataset.

    Args:
        data: the recipe's ``data``.
        seed: seed of the recipe; shuffles the rows of a split over its shards if the source allows random
            access.
        previous: version to append to; only rows that it lacks are planned.

    Raises:
        ConfigError: ``data`` contradicts the source or the previous version.
        DataError: the source does not exist, or too many of its inputs are rejected.
    """
    source = open_source(data.source)
    catalog = Catalog(source, data.splits, previous.keys() if previous else ())
    spec, class_names = resolve_spec(data, source, catalog, previous)
    catalog.classify(spec.classes)
    count = catalog.count_rejected
    check_quarantine(data, catalog.rejected(spec.classes), count, catalog.inputs)
    if previous is None and catalog.rows_of("train") == 0:
        raise DataError(
            f"{source.text}: none of the {catalog.inputs} inputs is in the train split; add data"
        )
    row_limit = data.shard_rows or max(1, min(_SHARD_ROWS, _SHARD_BYTES // spec.dims))
    shuffle_seed = seed if source.random_access else None
    shards, groups = _plan_shards(catalog, row_limit, shuffle_seed, previous)
    parents = {"source": catalog.scan.fingerprint, **(previous.digests if previous else {})}
    return DatasetPlan(
        fingerprint=fingerprint("dataset", FORMAT, data.result(), seed, parents),
        source=source.text,
        scan=catalog.scan,
        data=data,
        spec=spec,
        class_names=class_names,
        class_numbers=tuple(catalog.class_numbers(class_names)) if spec.classes else (),
        shards=tuple(shards),
        rejected=(*(previous.rejected if previous else ()), *catalog.rejected(spec.classes)),
        parents=parents,
        previous=previous,
        groups=groups,
    )


def _plan_shards(
    catalog: Catalog, row_limit: int, seed: int | None, previous: PreviousVersion | None
) -> tuple[list[PlannedShard], Groups]:
    """Plan shards of nearly equal size, and assign the rows: shuffled within a split, or in order."""
    shards: list[PlannedShard] = []
    starts: dict[Split, NDArray[np.int64]] = {}
    groups: dict[Split, NDArray[np.int64]] = {}
    version = f"v{previous.version + 1:03d}-" if previous else ""
    group_shards = max(1, CATALOG_CHUNK_ROWS // row_limit)
    group = 0
    for split in SPLITS:
        rows = catalog.rows_of(split)
        index = previous.row_stats(split).next_index if previous else 0
        # Divide the split into shards of nearly equal size, and the shards into groups.
        count = -(-rows // row_limit)
        bounds = [number * rows // max(1, count) for number in range(count + 1)]
        groups[split] = group + np.arange(count, dtype=np.int64) // group_shards
        group += -(-count // group_shards)
        starts[split] = np.array(bounds[:-1], dtype=np.int64)
        for number, (first, end) in enumerate(pairwise(bounds)):
            name, its_group = f"{split}-{version}{number:06d}", int(groups[split][number])
            first_line = first - bounds[number - number % group_shards]
            shards.append(
                PlannedShard(name, split, end - first, index + first, its_group, first_line)
            )

    def group_of(split: Split, first: int, count: int) -> SlotsAndGroups:
        slot_M = np.arange(first, first + count, dtype=np.int64)
        if seed is not None:
            size = catalog.rows_of(split)
            slot_M = shuffle(torch.from_numpy(slot_M), size, seed, f"shard/{split}").numpy()
        shard_M = np.searchsorted(starts[split], slot_M, side="right") - 1
        return slot_M, groups[split][shard_M]

    return shards, catalog.assign(group_of)


def make_manifest(
    plan: DatasetPlan, receipts: Sequence[ShardReceipt], quarantine: FileEntry
) -> DatasetManifest:
    """Build the manifest of a dataset.

    Args:
        plan: plan of the dataset.
        receipts: receipts of all planned shards, in the plan's order.
        quarantine: the written list of rejected inputs.
    """
    previous = plan.previous
    stats: dict[Split, RowStats] = {}
    for split in SPLITS:
        parts = [r.metadata for r in receipts if r.metadata and r.shard and r.shard.split == split]
        total = sum(parts, previous.row_stats(split) if previous else RowStats())
        if total.rows:
            stats[split] = total
    rejected = sum(len(receipt.rejected) for receipt in receipts) + len(plan.rejected)
    return DatasetManifest(
        fingerprint=plan.fingerprint,
        parents=plan.parents,
        files=(quarantine,),
        metadata={
            "version": previous.version + 1 if previous else 1,
            "source": plan.source,
            **dataset_metadata(stats),
        },
        spec=plan.spec,
        shards=(*(previous.shards if previous else ()), *(r.shard for r in receipts if r.shard)),
        quarantined=rejected,
        class_names=plan.class_names,
    )
