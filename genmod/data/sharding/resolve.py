"""Resolves a dataset's spec from the recipe, the source and the previous version."""

from __future__ import annotations

from dataclasses import dataclass

from genmod.data.sharding.catalog import Catalog
from genmod.data.sharding.image_sample import (
    ImageSample,
    channels_text,
    sample_images,
    sizes_text,
)
from genmod.data.sharding.previous_version import PreviousVersion
from genmod.data.sources.config import DataConfig
from genmod.data.sources.source import Source
from genmod.errors import ConfigError, DataError
from genmod.manifest import ImageSpec
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
    is_labelled = previous is not None and previous.manifest.spec.classes > 0
    if len(names) == 1 and data.labels == "auto" and data.classes is None and not is_labelled:
        catalog.scan.census.decide(
            f"no labels: all images are in one class, {names[0]!r}; data.labels=true makes it a class"
        )
        return 0, ()
    if previous is not None and count:
        names = previous.match_classes(names, data.new_classes)
        count = len(names) or count
    if count == 0:
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
