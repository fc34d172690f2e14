"""The plan of a dataset: which row of the source goes to which split, which shard, under which key.

A pure function of the recipe's ``data``, the seed, the source's listing and a parent. Letters: N rows.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genmod import rng
from genmod.config import Config, fingerprint
from genmod.data.codecs import Codec, Refused, conform
from genmod.data.parent import Parent
from genmod.data.resolve import resolve_spec
from genmod.data.shards import RowFacts, ShardReceipt, dataset_facts, key_of
from genmod.data.sources import NO_LABEL, DataConfig, Listing, Splits, open_source, pixels_of
from genmod.data.tars import BLOCK
from genmod.errors import DataError
from genmod.manifest import FORMAT, SPLITS, DatasetManifest, FileEntry, ImageSpec, Split

SHARD_ROWS, SHARD_BYTES, PROBE_ROWS = 2048, 32 << 20, 16
"""Rows and pixel bytes of a shard where the recipe does not say; rows encoded to estimate all."""

RefusedRow = tuple[str, str, str]
"""(key, name, reason)."""


class ShardPlan(Config):
    """A dataset's plan in a few numbers."""

    source: str
    spec: ImageSpec
    rows: int
    rows_by_split: dict[str, int]
    refused: int
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
    row_N: NDArray[np.int64]
    """Numbers of rows in the listing, in the shard's order."""
    first_index: int
    """Index in the split of the first row; the others follow."""


@dataclass(frozen=True)
class DatasetPlan:
    """What the stage will do, before it does anything."""

    fingerprint: str
    source: str
    """``KIND:WHERE``, absolute."""
    listing: Listing
    keys: Sequence[str]
    data: DataConfig
    spec: ImageSpec
    class_names: tuple[str, ...]
    shards: tuple[PlannedShard, ...]
    refused: tuple[RefusedRow, ...]
    """What the plan already refuses, and what the parent refused."""
    parents: dict[str, str]
    """Digests of what the dataset is made from."""
    parent: Parent | None

    @property
    def rows(self) -> int:
        """Of all shards to make."""
        return sum(len(shard.row_N) for shard in self.shards)

    @property
    def own_refused(self) -> tuple[RefusedRow, ...]:
        """What the plan refuses, without what the parent did."""
        return self.refused[len(self.parent.refused) if self.parent else 0 :]

    def job(self, shard: PlannedShard, root: str) -> dict[str, Any]:
        """Everything that the maker of a shard needs, as JSON values."""
        rows = shard.row_N.tolist()
        labels = self.listing.labels_N if self.spec.classes else None
        return {
            "root": root,
            "name": shard.name,
            "split": shard.split,
            "first_index": shard.first_index,
            "fingerprint": self.fingerprint,
            "spec": self.spec.model_dump(mode="json"),
            "resize": self.data.resize,
            "source": self.source,
            "source_fingerprint": self.listing.fingerprint,
            "refs": [self.listing.refs[row] for row in rows],
            "keys": [self.keys[row] for row in rows],
            "names": [self.listing.names[row] for row in rows],
            "labels": None if labels is None else labels[shard.row_N].tolist(),
        }

    def summary(self) -> ShardPlan:
        """For people and for ``--dry-run``; encodes some rows to learn how large they become."""
        by_split: Counter[str] = Counter()
        for shard in self.shards:
            by_split[shard.split] += len(shard.row_N)
        return ShardPlan(
            source=self.source,
            spec=self.spec,
            rows=self.rows,
            rows_by_split={split: by_split[split] for split in SPLITS},
            refused=len(self.refused),
            shards=len(self.shards),
            size_bytes=self.rows * self._bytes_of_a_row(),
            fingerprint=self.fingerprint,
            class_names=self.class_names,
        )

    def _bytes_of_a_row(self) -> int:
        """Headers, the label's block, and the mean of a few images, in whole blocks."""
        if not self.shards:
            return 0
        row_N = self.shards[0].row_N
        some = row_N[:: -(-len(row_N) // PROBE_ROWS)].tolist()
        refs = [self.listing.refs[row] for row in some]
        codec, sizes = Codec(self.spec), [0]
        for image in open_source(self.source).fetch(refs, self.listing.fingerprint):
            with suppress(Refused):
                image_HWC = conform(pixels_of(image), self.spec, self.data.resize)
                sizes.append(-(-len(codec.encode(image_HWC)) // BLOCK) * BLOCK)
        label = 2 * BLOCK if self.spec.classes else 0
        return BLOCK + label + sum(sizes) // max(1, len(sizes) - 1)


def split_of(key: str, splits: Splits) -> Split:
    """The split of a key: the same for ever, whatever else the dataset holds and whatever the seed."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"genmod.split").digest()
    share = int.from_bytes(digest, "little") / 2**64
    if share < splits.test:
        return "test"
    return "val" if share < splits.test + splits.val else "train"


def make_plan(data: DataConfig, seed: int, parent: Parent | None = None) -> DatasetPlan:
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
    listing = source.listing()
    if parent is not None:
        listing = parent.adopt(listing)
    spec, class_names = resolve_spec(data, source, listing, parent)
    keys = [key_of(name) for name in listing.names]
    kept_N, refused = _sift(listing, keys, spec, parent)
    check_budget(data, refused, len(listing) + len(listing.refused))
    if parent is not None:
        refused = [*parent.refused, *refused]
    splits = [split_of(keys[row], data.splits) for row in kept_N.tolist()]
    if "train" not in splits and parent is None:
        raise DataError(f"{source.text}: {len(kept_N)} rows leave nothing to train on; add data")
    row_limit = data.shard_rows or max(1, min(SHARD_ROWS, SHARD_BYTES // spec.dims))
    shards: list[PlannedShard] = []
    for split in SPLITS:
        row_N = kept_N[[mine == split for mine in splits]]
        if source.scattered:
            at_N = torch.arange(len(row_N))
            row_N = row_N[rng.shuffle(at_N, len(row_N), seed, f"shard/{split}").numpy()]
        index = parent.facts(split).next_index if parent else 0
        version = f"v{parent.version + 1:03d}-" if parent else ""
        count = -(-len(row_N) // row_limit)
        bounds = [number * len(row_N) // max(1, count) for number in range(count + 1)]
        for number, (first, end) in enumerate(pairwise(bounds)):
            name = f"{split}-{version}{number:06d}"
            shards.append(PlannedShard(name, split, row_N[first:end], index + first))
    parents = {"source": listing.fingerprint, **(parent.digests if parent else {})}
    return DatasetPlan(
        fingerprint=fingerprint("dataset", FORMAT, data.result(), seed, parents),
        source=source.text,
        listing=listing,
        keys=keys,
        data=data,
        spec=spec,
        class_names=class_names,
        shards=tuple(shards),
        refused=tuple(refused),
        parents=parents,
        parent=parent,
    )


def _sift(
    listing: Listing, keys: Sequence[str], spec: ImageSpec, parent: Parent | None
) -> tuple[NDArray[np.int64], list[RefusedRow]]:
    """Rows to shard, and what is refused without looking at an image."""
    known = parent.known_keys if parent else frozenset[str]()
    refused = [
        (key, name, reason)
        for name, reason in listing.refused
        if (key := key_of(name)) not in known
    ]
    labels = listing.labels_N.tolist() if listing.labels_N is not None and spec.classes else None
    kept: list[int] = []
    used: set[str] = set()
    for row, (key, name) in enumerate(zip(keys, listing.names, strict=True)):
        if key in known:
            continue
        if key in used:
            refused.append((key, name, "its key is in use already"))
        elif labels is not None and not 0 <= labels[row] < spec.classes:
            refused.append((key, name, _label_fault(labels[row], spec.classes)))
        else:
            used.add(key)
            kept.append(row)
    return np.array(kept, dtype=np.int64), refused


def _label_fault(label: int, classes: int) -> str:
    if label == NO_LABEL:
        return "has no label"
    if label < 0:
        return "its label is not a number of a class"
    return f"label {label}, there are {classes} classes"


def over_budget(data: DataConfig, refused: int, rows: int) -> bool:
    """Whether more of the inputs are refused than the recipe allows."""
    return refused > data.max_quarantined * rows


def check_budget(data: DataConfig, refused: Sequence[RefusedRow], rows: int) -> None:
    """Raise DataError if more of the inputs are refused than the recipe allows."""
    if over_budget(data, len(refused), rows):
        kinds = Counter(_NUMBERS.sub("N", reason.partition(":")[0]) for _, _, reason in refused)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3))
        rest = len(refused) - sum(count for _, count in kinds.most_common(3))
        _, name, reason = refused[0]
        raise DataError(
            f"{data.source}: {len(refused)} of {rows} inputs are refused, more than "
            f"data.max_quarantined={data.max_quarantined:g} allows "
            f"({counts}{f', {rest} others' if rest else ''}); the first is {_shown(name)}: {reason}"
        )


_NUMBERS = re.compile(r"\d+")


def _shown(name: str) -> str:
    """A name for people: what a terminal would act on is written out."""
    return name if name.isprintable() else repr(name)[1:-1]


def make_manifest(
    plan: DatasetPlan, made: Sequence[ShardReceipt], quarantine: FileEntry
) -> DatasetManifest:
    """The manifest of the dataset, from the receipts of all its shards in the plan's order."""
    parent = plan.parent
    facts: dict[Split, RowFacts] = {}
    for split in SPLITS:
        mine = [r.facts for r in made if r.facts and r.shard and r.shard.split == split]
        total = sum(mine, parent.facts(split) if parent else RowFacts())
        if total.rows:
            facts[split] = total
    refused = sum(len(receipt.refused) for receipt in made) + len(plan.refused)
    return DatasetManifest(
        fingerprint=plan.fingerprint,
        parents=plan.parents,
        files=(quarantine,),
        facts={
            "version": parent.version + 1 if parent else 1,
            "source": plan.source,
            **dataset_facts(facts),
        },
        spec=plan.spec,
        shards=(*(parent.shards if parent else ()), *(r.shard for r in made if r.shard)),
        quarantined=refused,
        class_names=plan.class_names,
    )
