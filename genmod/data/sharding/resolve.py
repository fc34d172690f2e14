"""Resolves a dataset's spec from the recipe, the source and the previous version, and checks its catalog."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genmod.data.sharding.catalog import Catalog
from genmod.data.sharding.image_sample import (
    ImageSample,
    channels_text,
    check_sizes,
    sample_images,
    sizes_text,
)
from genmod.data.sharding.previous_version import PreviousVersion
from genmod.data.sharding.quarantine import check_quarantine
from genmod.data.sources.class_names import similar_names
from genmod.data.sources.config import DataConfig
from genmod.data.sources.source import Source
from genmod.errors import ConfigError, DataError
from genmod.manifest import SPLITS, ImageSpec
from genmod.manifest.dataset import check_class_names

_MAX_CLASSES = 100_000
"""More classes without ``data.classes`` are considered an error of the labels."""


@dataclass(frozen=True)
class Resolved:
    """What a dataset will be, and the sample of images that it was decided from."""

    spec: ImageSpec
    class_names: tuple[str, ...]
    sample: ImageSample


def resolve_spec(
    data: DataConfig, source: Source, catalog: Catalog, previous: PreviousVersion | None
) -> Resolved:
    """Determine the dataset's spec and class names, and record the decisions in the census.

    Raises:
        ConfigError: the recipe contradicts the source or the previous version.
        DataError: no image of the source can be read, or labels are implausible.
    """
    classes, class_names = _classes(data, source, catalog, previous)
    sample = sample_images(source, catalog.scan, catalog.sample.rows(), catalog.inputs)
    channels, height, width = _shape(data, source, catalog, previous, sample)
    spec = ImageSpec(
        channels=data.channels or (1 if channels == 1 else 3),
        height=height,
        width=width,
        classes=classes,
        levels=data.levels,
        draw_seed=data.draw_seed,
    )
    if previous is not None and spec != previous.manifest.spec:
        raise ConfigError(
            f"the recipe requires {spec}, but the previous version {previous.root} has "
            f"{previous.manifest.spec}; shard into a new dataset under another root"
        )
    for decision in (channels_text(data, spec, sample), sizes_text(data, spec, sample)):
        if decision:
            catalog.scan.census.decide(decision)
    return Resolved(spec, class_names, sample)


def _shape(
    data: DataConfig,
    source: Source,
    catalog: Catalog,
    previous: PreviousVersion | None,
    sample: ImageSample,
) -> tuple[int, int, int]:
    """(C, H, W) from the previous version, the source's declaration, or most of its sampled images."""
    size = data.image_size
    if previous is not None:
        channels, height, width = previous.manifest.spec.shape
    elif catalog.scan.shape is not None:
        channels, height, width = catalog.scan.shape
    elif size is not None and data.channels is not None:
        channels, height, width = data.channels, 0, 0
    elif sample.sizes:
        channels = 3 if sample.rgb else 1
        height, width = sample.sizes[0].height, sample.sizes[0].width
    else:
        raise DataError(
            f"{source.text}: none of {sample.unreadable} sampled images is readable; "
            f"the first: {sample.reason}"
        )
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width


def _classes(
    data: DataConfig, source: Source, catalog: Catalog, previous: PreviousVersion | None
) -> tuple[int, tuple[str, ...]]:
    """Number of classes, and their names if labels are names."""
    if data.labels is False:
        if data.classes:
            raise ConfigError(
                f"recipe: data.labels=false contradicts data.classes={data.classes}; remove one"
            )
        return 0, ()
    count, names = catalog.classes, catalog.class_names
    check_class_names(names, source.text)
    if similar := similar_names(names):
        catalog.scan.census.decide(
            f"classes {similar} differ only in case, spaces, zeros or Unicode form"
        )
    is_labelled = previous is not None and previous.manifest.spec.classes > 0
    is_auto = data.labels == "auto" and data.classes is None and not is_labelled
    if len(names) == 1 and is_auto and not catalog.bad_labels:
        catalog.scan.census.decide(
            f"no labels: {names[0]!r} is the only class; data.labels=true makes it one"
        )
        return 0, ()
    if previous is not None and count == 0 and catalog.new_classes.rows:
        count, names = previous.manifest.spec.classes, previous.manifest.class_names
    elif previous is not None and count:
        # The recipe's number of classes rejects larger labels.
        seen = count if data.classes is None else min(count, data.classes)
        names = previous.match_classes(names, seen, data.new_classes)
        count = len(names) or count
    if count == 0:
        if catalog.bad_labels:
            (reason, rows), *_ = catalog.bad_labels.most_common(1)
            raise DataError(
                f"{source.text}: {rows:,} rows have no class ({reason}); correct the labels, choose others "
                "with data.label, or set data.labels=false"
            )
        if data.classes or data.labels is True:
            setting = f"data.classes={data.classes}" if data.classes else "data.labels=true"
            raise ConfigError(
                f"{source.text} has no labels, but the recipe sets {setting}; remove it"
            )
        return 0, ()
    if names and data.classes not in (None, count):
        first_names = ", ".join(names[:5]) + (", ..." if count > 5 else "")
        raise ConfigError(
            f"{source.text} has {count} classes ({first_names}), but the recipe sets "
            f"data.classes={data.classes}; remove it"
        )
    classes = data.classes or max(count, previous.manifest.spec.classes if previous else 0)
    if classes > _MAX_CLASSES:
        raise DataError(
            f"{source.text}: labels range up to {count - 1}; check them, and set data.classes"
        )
    return classes, names


def check_catalog(
    data: DataConfig, catalog: Catalog, resolved: Resolved, previous: PreviousVersion | None
) -> None:
    """Check what will be made of a classified catalog.

    Raises:
        ConfigError: too many images of the sample have another size.
        DataError: too many inputs are rejected, or none is left to train on.
    """
    rejected = catalog.rejected(resolved.spec.classes)
    check_quarantine(data, rejected, catalog.count_rejected, catalog.inputs)
    check_sizes(data, resolved.spec, resolved.sample)
    if previous is None and catalog.rows_of("train") == 0:
        raise DataError(
            f"{data.source}: none of the {catalog.inputs} inputs is in the train split; add data"
        )


def rows_by_class(
    catalog: Catalog, class_numbers: Sequence[int], previous: PreviousVersion | None
) -> NDArray[np.int64]:
    """Rows of each split and class of the dataset, with those of the previous version."""
    rows_SK = catalog.rows_SK
    if class_numbers:
        rows_SK = np.zeros_like(rows_SK)
        rows_SK[:, list(class_numbers)] = catalog.rows_SK[:, : len(class_numbers)]
    if previous is not None and rows_SK.size:
        for number, split in enumerate(SPLITS):
            rows_K = previous.row_stats(split).rows_K
            rows_SK[number, : len(rows_K)] += np.array(rows_K, dtype=np.int64)
    return rows_SK
