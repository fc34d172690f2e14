"""Resolves a dataset's spec from the recipe, the source and the previous version."""

from __future__ import annotations

from genmod.data.format.codecs import Rejected
from genmod.data.sharding.catalog import Catalog
from genmod.data.sharding.previous_version import PreviousVersion
from genmod.data.sources.source import DataConfig, Source, pixels_of
from genmod.errors import ConfigError, DataError
from genmod.manifest import ImageSpec

_MAX_CLASSES = 100_000
"""More classes without ``data.classes`` are considered an error of the labels."""


def resolve_spec(
    data: DataConfig, source: Source, catalog: Catalog, previous: PreviousVersion | None
) -> tuple[ImageSpec, tuple[str, ...]]:
    """Determine the dataset's spec and class names.

    Raises:
        ConfigError: the recipe contradicts the source or the previous version.
        DataError: no image of the source can be read, or labels are implausible.
    """
    classes, class_names = _classes(data, source, catalog, previous)
    size = data.image_size
    # Shape: from the previous version, the source's declaration, or its first image.
    if previous is not None:
        channels, height, width = previous.manifest.spec.shape
    elif catalog.scan.shape is not None:
        channels, height, width = catalog.scan.shape
    elif size is None or data.channels is None:
        channels, height, width = _peek(source, catalog)
    else:
        channels, height, width = data.channels, 0, 0
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
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
    return spec, class_names


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
    if previous is not None and names:
        names = previous.match_classes(names)
        count = len(names)
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


def _peek(source: Source, catalog: Catalog) -> tuple[int, int, int]:
    """(C, H, W) of the first readable image."""
    reason = ""
    for image in source.fetch(catalog.first_refs, catalog.scan.fingerprint):
        try:
            shape = pixels_of(image).shape
        except Rejected as error:
            reason = reason or str(error)
            continue
        return (1 if len(shape) == 2 else shape[2]), shape[0], shape[1]
    raise DataError(
        f"{source.text}: none of the first {len(catalog.first_refs)} images is readable; "
        f"the first: {reason}"
    )
