"""The plan of a dataset: which row of the source goes to which split, which shard, under which key.

A pure function of the recipe's ``data``, the seed, the source's listing and a parent. Letters: N rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
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
from genmod.data.sharding.catalog import CHUNK_ROWS, Catalog, Places, RejectedRow
from genmod.data.sharding.disk_buckets import Groups, RowLine
from genmod.data.sharding.previous_version import PreviousVersion
from genmod.data.sharding.resolve import resolve_spec
from genmod.data.sources.registry import open_source
from genmod.data.sources.source import DataConfig, Scan, pixels_of
from genmod.errors import DataError, sanitize
from genmod.manifest import FORMAT, SPLITS, DatasetManifest, FileEntry, ImageSpec, Split
from genmod.permutation import shuffle

SHARD_ROWS, SHARD_BYTES, PROBE_ROWS = 2048, 32 << 20, 16
"""Rows and pixel bytes of a shard where the recipe does not say; rows encoded to estimate all."""

TASK_BYTES = 512 << 20
"""A process with what it imports, files that it fetches ahead, and a large image."""

TAR_ROW_BYTES = 4 * BLOCK
"""What a row takes in a tar beside its pixels."""


class ShardPlan(Config):
    """A dataset's plan in a few numbers."""

    source: str
    spec: ImageSpec
    rows: int
    rows_by_split: dict[str, int]
    rejected: int
    """Before any image is looked at."""
    shards: int
    size_bytes: int
    """About as many bytes of tars."""
    fingerprint: str
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedShard:
    """One tar to make."""

    name: str
    split: Split
    rows: int
    first_index: int
    """Index in the split of the first row; the others follow."""
    group: int
    """Where the lines of its rows lie, and which is the first of them."""
    first_line: int


@dataclass(frozen=True)
class DatasetPlan:
    """What the stage will do, before it does anything. Its rows are on disk, not in memory."""

    fingerprint: str
    source: str
    """``KIND:WHERE``, absolute."""
    scan: Scan
    data: DataConfig
    spec: ImageSpec
    class_names: tuple[str, ...]
    class_numbers: tuple[int, ...]
    """Of the classes as the lines number them, where they have names."""
    shards: tuple[PlannedShard, ...]
    rejected: tuple[RejectedRow, ...]
    """What the plan already refuses, and what the parent refused."""
    parents: dict[str, str]
    """Digests of what the dataset is made from."""
    parent: PreviousVersion | None
    groups: Groups

    @property
    def rows(self) -> int:
        """Of all shards to make."""
        return sum(shard.rows for shard in self.shards)

    @property
    def rows_by_split(self) -> dict[str, int]:
        """Of the shards to make."""
        return {split: sum(s.rows for s in self.shards if s.split == split) for split in SPLITS}

    @property
    def new_rejected(self) -> tuple[RejectedRow, ...]:
        """What the plan refuses, without what the parent did."""
        return self.rejected[len(self.parent.rejected) if self.parent else 0 :]

    def job(self, shard: PlannedShard, root: str) -> dict[str, Any]:
        """Everything that the maker of a shard needs, as JSON values."""
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
        """The rows of a shard, in its order."""
        return self.groups.rows(shard.group, shard.first_line, shard.rows)

    @property
    def task_bytes(self) -> int:
        """Memory that the maker of a shard needs: pixels and tar of the largest, what it reads at once."""
        rows = max((shard.rows for shard in self.shards), default=0)
        shard_bytes = rows * (self.spec.dims + TAR_ROW_BYTES)
        return TASK_BYTES + 3 * shard_bytes + 2 * self.scan.max_fetch_bytes

    def summary(self) -> ShardPlan:
        """For people and for ``--dry-run``; encodes some rows to learn how large they become."""
        return ShardPlan(
            source=self.source,
            spec=self.spec,
            rows=self.rows,
            rows_by_split=self.rows_by_split,
            rejected=len(self.rejected),
            shards=len(self.shards),
            size_bytes=self.rows * self._bytes_of_a_row(),
            fingerprint=self.fingerprint,
            class_names=self.class_names,
        )

    def _bytes_of_a_row(self) -> int:
        """Headers, the label's block, and the mean of a few images, in whole blocks."""
        if not self.shards:
            return 0
        lines = self.lines(self.shards[0])
        refs = [line.ref for line in lines[:: -(-len(lines) // PROBE_ROWS)]]
        codec, sizes = Codec(self.spec), [0]
        for image in open_source(self.source).fetch(refs, self.scan.fingerprint):
            with suppress(Rejected):
                image_HWC = to_spec(pixels_of(image), self.spec, self.data.resize)
                sizes.append(-(-len(codec.encode(image_HWC)) // BLOCK) * BLOCK)
        label = 2 * BLOCK if self.spec.classes else 0
        return BLOCK + label + sum(sizes) // max(1, len(sizes) - 1)


def make_plan(data: DataConfig, seed: int, parent: PreviousVersion | None = None) -> DatasetPlan:
    """List the source and plan its dataset.

    Args:
        data: the recipe's section.
        seed: of the recipe; mixes the rows of a split over its shards where fetching allows it.
        parent: the dataset that this one grows from; only rows that it does not know are planned.

    Raises:
        ConfigError: the section asks for what the source or the parent does not have.
        DataError: the source is not there, or too much of it cannot be used.
    """
    source = open_source(data.source)
    catalog = Catalog(source, data.splits, parent.keys() if parent else ())
    spec, class_names = resolve_spec(data, source, catalog, parent)
    catalog.classify(spec.classes)
    count = catalog.count_rejected
    check_quarantine(data, catalog.rejected(spec.classes), count, catalog.inputs)
    if parent is None and catalog.rows_of("train") == 0:
        raise DataError(
            f"{source.text}: {catalog.inputs} inputs leave nothing to train on; add data"
        )
    row_limit = data.shard_rows or max(1, min(SHARD_ROWS, SHARD_BYTES // spec.dims))
    shards, groups = _deal(catalog, row_limit, seed if source.random_access else None, parent)
    parents = {"source": catalog.scan.fingerprint, **(parent.digests if parent else {})}
    return DatasetPlan(
        fingerprint=fingerprint("dataset", FORMAT, data.result(), seed, parents),
        source=source.text,
        scan=catalog.scan,
        data=data,
        spec=spec,
        class_names=class_names,
        class_numbers=tuple(catalog.class_numbers(class_names)) if spec.classes else (),
        shards=tuple(shards),
        rejected=(*(parent.rejected if parent else ()), *catalog.rejected(spec.classes)),
        parents=parents,
        parent=parent,
        groups=groups,
    )


def _deal(
    catalog: Catalog, row_limit: int, seed: int | None, parent: PreviousVersion | None
) -> tuple[list[PlannedShard], Groups]:
    """Shards of about the same size, and their rows: mixed over a split's shards, or in order if not."""
    shards: list[PlannedShard] = []
    starts: dict[Split, NDArray[np.int64]] = {}
    groups: dict[Split, NDArray[np.int64]] = {}
    version = f"v{parent.version + 1:03d}-" if parent else ""
    together = max(1, CHUNK_ROWS // row_limit)
    group = 0
    for split in SPLITS:
        rows = catalog.rows_of(split)
        index = parent.metadata(split).next_index if parent else 0
        count = -(-rows // row_limit)
        bounds = [number * rows // max(1, count) for number in range(count + 1)]
        groups[split] = group + np.arange(count, dtype=np.int64) // together
        group += -(-count // together)
        starts[split] = np.array(bounds[:-1], dtype=np.int64)
        for number, (first, end) in enumerate(pairwise(bounds)):
            name, mine = f"{split}-{version}{number:06d}", int(groups[split][number])
            first_line = first - bounds[number - number % together]
            shards.append(PlannedShard(name, split, end - first, index + first, mine, first_line))

    def group_of(split: Split, first: int, count: int) -> Places:
        slot_M = np.arange(first, first + count, dtype=np.int64)
        if seed is not None:
            size = catalog.rows_of(split)
            slot_M = shuffle(torch.from_numpy(slot_M), size, seed, f"shard/{split}").numpy()
        shard_M = np.searchsorted(starts[split], slot_M, side="right") - 1
        return slot_M, groups[split][shard_M]

    return shards, catalog.place(group_of)


def exceeds_quarantine(data: DataConfig, rejected: int, rows: int) -> bool:
    """Whether more of the inputs are refused than the recipe allows."""
    return rejected > data.max_quarantined * rows


def check_quarantine(
    data: DataConfig, rejected: Iterable[RejectedRow], count: int, rows: int
) -> None:
    """Raise DataError if ``count`` refused inputs are more of them than the recipe allows."""
    if exceeds_quarantine(data, count, rows):
        kinds, example = Counter[str](), ""
        for _, name, reason in rejected:
            kinds[_NUMBERS.sub("N", reason.partition(":")[0])] += 1
            example = example or f"{sanitize(name)}: {reason}"
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3))
        rest = count - sum(count for _, count in kinds.most_common(3))
        raise DataError(
            f"{data.source}: {count} of {rows} inputs are refused, more than "
            f"data.max_quarantined={data.max_quarantined:g} allows "
            f"({counts}{f', {rest} others' if rest else ''}); the first is {example}"
        )


_NUMBERS = re.compile(r"\d+")


def make_manifest(
    plan: DatasetPlan, made: Sequence[ShardReceipt], quarantine: FileEntry
) -> DatasetManifest:
    """The manifest of the dataset, from the receipts of all its shards in the plan's order."""
    parent = plan.parent
    metadata: dict[Split, RowStats] = {}
    for split in SPLITS:
        mine = [r.metadata for r in made if r.metadata and r.shard and r.shard.split == split]
        total = sum(mine, parent.metadata(split) if parent else RowStats())
        if total.rows:
            metadata[split] = total
    rejected = sum(len(receipt.rejected) for receipt in made) + len(plan.rejected)
    return DatasetManifest(
        fingerprint=plan.fingerprint,
        parents=plan.parents,
        files=(quarantine,),
        metadata={
            "version": parent.version + 1 if parent else 1,
            "source": plan.source,
            **dataset_metadata(metadata),
        },
        spec=plan.spec,
        shards=(*(parent.shards if parent else ()), *(r.shard for r in made if r.shard)),
        quarantined=rejected,
        class_names=plan.class_names,
    )
