"""What images a dataset holds: the recipe's wishes against what the source, or the parent, has."""

from __future__ import annotations

from genmod.data.format.codecs import Rejected
from genmod.data.sharding.catalog import Catalog
from genmod.data.sharding.previous_version import PreviousVersion
from genmod.data.sources.source import DataConfig, Source, pixels_of
from genmod.errors import ConfigError, DataError
from genmod.manifest import ImageSpec

MAX_CLASSES = 100_000
"""More than these are taken for a fault of the labels."""


def resolve_spec(
    data: DataConfig, source: Source, catalog: Catalog, parent: PreviousVersion | None
) -> tuple[ImageSpec, tuple[str, ...]]:
    """The dataset's spec and class names.

    Raises:
        ConfigError: the recipe asks for what is not there.
        DataError: no image of the source can be read.
    """
    classes, class_names = _classes(data, source, catalog, parent)
    size = data.image_size
    if parent is not None:
        channels, height, width = parent.manifest.spec.shape
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
    if parent is not None and spec != parent.manifest.spec:
        raise ConfigError(
            f"the recipe asks for {spec}, but the dataset that grows, {parent.root}, holds "
            f"{parent.manifest.spec}; make a new dataset under another root"
        )
    return spec, class_names


def _classes(
    data: DataConfig, source: Source, catalog: Catalog, parent: PreviousVersion | None
) -> tuple[int, tuple[str, ...]]:
    """How many classes the dataset has, and their names if they have any."""
    if data.labels is False:
        if data.classes:
            raise ConfigError(
                f"the recipe says data.labels=false and data.classes={data.classes}; leave one out"
            )
        return 0, ()
    found, names = catalog.classes, catalog.class_names
    if parent is not None and names:
        names = parent.match_classes(names)
        found = len(names)
    if found == 0:
        if data.classes or data.labels is True:
            label_request = f"data.classes={data.classes}" if data.classes else "data.labels=true"
            raise ConfigError(
                f"{source.text} has no labels, the recipe says {label_request}; leave it out"
            )
        return 0, ()
    if names and data.classes not in (None, found):
        some = ", ".join(names[:5]) + (", ..." if found > 5 else "")
        raise ConfigError(
            f"{source.text} has {found} classes ({some}), the recipe says "
            f"data.classes={data.classes}; leave it out"
        )
    classes = data.classes or max(found, parent.manifest.spec.classes if parent else 0)
    if classes > MAX_CLASSES:
        raise DataError(
            f"{source.text}: labels go up to {found - 1}; say how many with data.classes"
        )
    return classes, names


def _peek(source: Source, catalog: Catalog) -> tuple[int, int, int]:
    """(C, H, W) of the first image that can be read."""
    reason = ""
    for image in source.fetch(catalog.first_refs, catalog.scan.fingerprint):
        try:
            shape = pixels_of(image).shape
        except Rejected as error:
            reason = reason or str(error)
            continue
        return (1 if len(shape) == 2 else shape[2]), shape[0], shape[1]
    raise DataError(
        f"{source.text}: none of the first {len(catalog.first_refs)} images can be read; "
        f"the first: {reason}"
    )
