"""The plan of a dataset: split, shard, index and key of every row of the source.

A pure function of the recipe's ``data``, the seed, the source's listing and the previous version.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmod.config import Config, fingerprint
from genmod.data.format.codecs import Codec
from genmod.data.format.foreign import Rejected, accepted_pixels, conversion_bytes
from genmod.data.format.tar import BLOCK
from genmod.data.sharding.catalog import Catalog, RejectedRow
from genmod.data.sharding.disk_buckets import Groups, RowLine
from genmod.data.sharding.layout import PlannedShard, plan_shards
from genmod.data.sharding.new_classes import NewClasses
from genmod.data.sharding.previous_version import PreviousVersion
from genmod.data.sharding.resolve import check_catalog, resolve_spec, rows_by_class
from genmod.data.sharding.row_contents import added
from genmod.data.sharding.source_census import SourceCensus, take_census
from genmod.data.sources.config import DataConfig
from genmod.data.sources.registry import open_source
from genmod.data.sources.source import Scan, converted
from genmod.manifest import FORMAT, SPLITS, DatasetManifest, ImageSpec

_SHARD_ROWS, _SHARD_BYTES = 2048, 32 << 20
"""Default limits of a shard: rows, and bytes of pixels."""

_SAMPLE_ROWS = 16
"""Rows that are encoded to estimate the size of all rows."""

_TASK_BYTES = 512 << 20
"""Memory of a task apart from its shard and its images: imports, and files that are prefetched."""

_TAR_ROW_BYTES = 4 * BLOCK
"""Bytes of a row in a tar in addition to its pixels."""


class ShardPlan(Config):
    """Summary of a dataset's plan."""

    source: str
    spec: ImageSpec
    rows: int
    rows_by_split: dict[str, int]
    """Rows to write."""
    all_rows_by_split: dict[str, int]
    """Rows of the dataset, with those of the version that it shares shards with."""
    rejected: int
    """Inputs rejected before any image is decoded."""
    shards: int
    size_bytes: int
    """Estimated size of the tars."""
    fingerprint: str
    class_names: tuple[str, ...] = ()
    empty_classes: tuple[int, ...] = ()
    """Numbers of the classes without training rows."""
    census: SourceCensus


class VersionOrigin(Config):
    """Why a version of a dataset is made, if not for new rows alone; part of its fingerprint."""

    number: int
    """Of the version."""
    reason: str
    """In words, for people."""
    replaces: str = ""
    """Digest of the version before, of which this one shares nothing; empty if it shares its shards."""
    repeat: int = 0
    """How often in a row the same rows are a version again; changes the random numbers of training."""


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
    census: SourceCensus
    rows_SK: NDArray[np.int64]
    """Rows of each split and class, with those of the previous version."""
    lost: int = 0
    """Rows of the previous version that the source does not contain any more."""
    is_changed: bool = False
    """Whether the source has other bytes or labels now for rows of the previous version."""
    contents: str = ""
    """Of all rows, see :mod:`genmod.data.sharding.row_contents`; empty if they are not known row by row."""
    origin: VersionOrigin | None = None
    """Why the version is made, if it is not the first one."""
    new_classes: NewClasses = field(default_factory=partial(NewClasses, None))
    """Rows that were left out because their class is new."""

    @property
    def rows(self) -> int:
        """Number of rows of all shards to write."""
        return sum(shard.rows for shard in self.shards)

    @property
    def rows_by_split(self) -> dict[str, int]:
        """Number of rows to write for each split."""
        return {split: sum(s.rows for s in self.shards if s.split == split) for split in SPLITS}

    @property
    def all_rows_by_split(self) -> dict[str, int]:
        """Number of rows of each split, with those of the previous version."""
        previous = self.previous.manifest if self.previous else None
        own = self.rows_by_split
        return {s: own[s] + (previous.rows(s) if previous else 0) for s in SPLITS}

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
            "rejects_colour": self._rejects_colour,
            "source": self.source,
            "options": self.data.options.model_dump(mode="json"),
            "source_fingerprint": self.scan.fingerprint,
            "refs": [line.ref for line in lines],
            "names": [line.name for line in lines],
            "labels": labels,
        }

    @property
    def _rejects_colour(self) -> bool:
        is_by_sample = self.data.channels is None and self.spec.channels == 1
        return is_by_sample and self.census.sample.rgb == 0

    def lines(self, shard: PlannedShard) -> list[RowLine]:
        """Read the rows of a shard, in order."""
        return self.groups.rows(shard.group, shard.first_line, shard.rows)

    @property
    def task_bytes(self) -> int:
        """Memory of a task: pixels and tar of the largest shard, the largest fetch, the largest image."""
        rows = max((shard.rows for shard in self.shards), default=0)
        shard_bytes = rows * (self.spec.dims + _TAR_ROW_BYTES)
        pixels = accepted_pixels(self.spec, self.data.resize)
        if self.scan.shape is not None:
            pixels = min(pixels, self.scan.shape[1] * self.scan.shape[2])
        image_bytes = conversion_bytes(pixels, self.spec)
        return _TASK_BYTES + 3 * shard_bytes + 2 * self.scan.max_fetch_bytes + image_bytes

    def summary(self) -> ShardPlan:
        """Summarise the plan for ``--dry-run``; encodes some rows to estimate the size."""
        return ShardPlan(
            source=self.source,
            spec=self.spec,
            rows=self.rows,
            rows_by_split=self.rows_by_split,
            all_rows_by_split=self.all_rows_by_split,
            rejected=len(self.rejected),
            shards=len(self.shards),
            size_bytes=self.rows * self._row_bytes(),
            fingerprint=self.fingerprint,
            class_names=self.class_names,
            census=self.census,
            empty_classes=tuple(np.flatnonzero(self.rows_SK[SPLITS.index("train")] == 0).tolist()),
        )

    def _row_bytes(self) -> int:
        """Estimate the size of a row: headers, the label, and the mean of a few images, in whole blocks."""
        if not self.shards:
            return 0
        lines = self.lines(self.shards[0])
        refs = [line.ref for line in lines[:: -(-len(lines) // _SAMPLE_ROWS)]]
        codec, sizes = Codec(self.spec), [0]
        for image in open_source(self.source, self.data.options).fetch(refs, self.scan.fingerprint):
            with suppress(Rejected):
                image_HWC = converted(image, self.spec, self.data.resize)
                sizes.append(-(-len(codec.encode(image_HWC)) // BLOCK) * BLOCK)
        label = 2 * BLOCK if self.spec.classes else 0
        return BLOCK + label + sum(sizes) // max(1, len(sizes) - 1)


def make_plan(
    data: DataConfig,
    seed: int,
    previous: PreviousVersion | None = None,
    origin: VersionOrigin | None = None,
    classes_of: DatasetManifest | None = None,
) -> DatasetPlan:
    """List the source and plan its dataset.

    Args:
        data: the recipe's ``data``.
        seed: seed of the recipe; shuffles the rows of a split over its shards if the source allows random
            access.
        previous: version to append to; only rows that it lacks are planned.
        origin: of a version that replaces or repeats another one.
        classes_of: version whose classes are the only ones that are taken, where there is no ``previous``.

    Raises:
        ConfigError: ``data`` contradicts the source or the previous version.
        DataError: the source does not exist, or too many of its inputs are rejected.
    """
    source = open_source(data.source, data.options)
    if previous is not None and data.new_classes != "refuse":
        classes_of = previous.manifest
    catalog = Catalog(
        source,
        data.splits,
        previous.keys() if previous else (),
        new_classes=NewClasses(classes_of),
        known_rejected=[key for key, _, _ in previous.rejected] if previous else (),
    )
    resolved = resolve_spec(data, source, catalog, previous)
    spec, class_names = resolved.spec, resolved.class_names
    catalog.classify(spec.classes)
    check_catalog(data, catalog, resolved, previous)
    row_limit = data.shard_rows or max(1, min(_SHARD_ROWS, _SHARD_BYTES // spec.dims))
    shuffle_seed = seed if source.random_access else None
    shards, groups = plan_shards(catalog, row_limit, shuffle_seed, previous)
    parents = {"source": catalog.scan.fingerprint, **(previous.digests if previous else {})}
    if origin is not None and origin.replaces:
        parents["replaces"] = origin.replaces
    repeat = [origin.repeat] if origin is not None and origin.repeat else []
    left_out = ["new classes"] if previous is None and catalog.new_classes.rows else []
    numbers = tuple(catalog.class_numbers(class_names)) if spec.classes else ()
    rows_SK = rows_by_class(catalog, numbers, previous)
    return DatasetPlan(
        fingerprint=fingerprint(
            "dataset", FORMAT, data.result(), seed, parents, *repeat, *left_out
        ),
        source=source.text,
        scan=catalog.scan,
        data=data,
        spec=spec,
        class_names=class_names,
        class_numbers=numbers,
        shards=tuple(shards),
        rejected=(*(previous.rejected if previous else ()), *catalog.rejected(spec.classes)),
        parents=parents,
        previous=previous,
        groups=groups,
        census=take_census(data, source.text, catalog, resolved, rows_SK),
        rows_SK=rows_SK,
        lost=catalog.lost,
        is_changed=_is_changed(catalog, previous),
        contents=_contents(catalog, previous),
        origin=origin,
        new_classes=catalog.new_classes,
    )


def _contents(catalog: Catalog, previous: PreviousVersion | None) -> str:
    new = catalog.contents(known=False)
    return new if previous is None else added(previous.contents, new)


def _is_changed(catalog: Catalog, previous: PreviousVersion | None) -> bool:
    """Whether known rows have other contents; False if that is not known, or hidden by rows that are lost."""
    if previous is None or not previous.contents or catalog.lost:
        return False
    return catalog.contents(known=True) not in ("", previous.contents)
