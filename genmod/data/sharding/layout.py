"""Divides the rows of each split into shards, and the shards into groups. Letters: M rows of a part."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from genmod.data.sharding.catalog import CATALOG_CHUNK_ROWS, Catalog, SlotsAndGroups
from genmod.data.sharding.disk_buckets import Groups
from genmod.data.sharding.previous_version import PreviousVersion
from genmod.manifest import SPLITS, Split
from genmod.permutation import shuffle


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


def plan_shards(
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
