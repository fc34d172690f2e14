"""Preview of a source: its census and example images of each class, without a plan, and nothing is written.

The source is listed without reading the content of its files, and memory does not grow with the number of
rows, so a million files take seconds. Letters: H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genmod.data.format.foreign import Rejected, Resize, to_spec
from genmod.data.format.image_grid import draw_sheet, thumbnail_spec
from genmod.data.sharding.catalog import Catalog
from genmod.data.sharding.resolve import Resolved, check_catalog, resolve_spec, rows_by_class
from genmod.data.sharding.row_sample import SampledRow
from genmod.data.sharding.source_census import SourceCensus, take_census
from genmod.data.sources.config import DataConfig
from genmod.data.sources.registry import open_source
from genmod.data.sources.source import Source, converted, pixels_of
from genmod.errors import ConfigError, DataError
from genmod.manifest import ImageSpec

_IMAGES, _CLASSES = 8, 20
"""Images of a class, and classes on the sheet."""

_COLUMNS = 16
"""Images in a row of the sheet of unlabelled data."""

_FETCHED_BYTES, _DECODED_PIXELS = 1 << 29, 1 << 29
"""Bytes and pixels after which no more images are fetched; then the sheet has fewer of each class."""


@dataclass(frozen=True)
class SourceSheet:
    """A grid of example images of a source, as a dataset would have them."""

    png: bytes
    images: int
    classes: tuple[int, ...]
    """Class number of each row; empty for unlabelled data."""


@dataclass(frozen=True)
class SourcePreview:
    """What would be made of a source."""

    census: SourceCensus
    refused: str | None
    """Why sharding would refuse the source; None if it would not."""
    sheet: SourceSheet | None
    """None if no sampled image can be used."""


def preview(data: DataConfig) -> SourcePreview:
    """List a source, and show some of its images. Writes nothing.

    Raises:
        ConfigError: ``data`` contradicts the source.
        DataError: the source does not exist, or its images or labels cannot be read.
    """
    source = open_source(data.source, data.options)
    # Half of the candidates replace images that are rejected.
    catalog = Catalog(source, data.splits, sample_per_class=2 * _IMAGES, identify=False)
    resolved = resolve_spec(data, source, catalog, None)
    catalog.classify(resolved.spec.classes)
    numbers = catalog.class_numbers(resolved.class_names) if resolved.spec.classes else ()
    census = take_census(
        data, source.text, catalog, resolved, rows_by_class(catalog, numbers, None)
    )
    refused = None
    try:
        check_catalog(data, catalog, resolved, None)
    except (ConfigError, DataError) as error:
        refused = str(error)
    return SourcePreview(census, refused, _sheet(data, source, catalog, resolved, numbers))


def _sheet(
    data: DataConfig,
    source: Source,
    catalog: Catalog,
    resolved: Resolved,
    numbers: Sequence[int],
) -> SourceSheet | None:
    spec = resolved.spec
    # Choose the rows of the first classes, or of all data.
    candidates = {0: catalog.sample.rows()}
    if spec.classes:
        rows = catalog.sample.rows_by_class().items()
        named = {(numbers[k] if numbers else k): kept for k, kept in rows if k >= 0}
        candidates = {k: named[k] for k in sorted(named)[:_CLASSES] if k < spec.classes}
    most = _IMAGES if spec.classes else _IMAGES * _CLASSES
    # Fetch as many as are shown; then others in place of those that are rejected.
    images: dict[int, list[tuple[int, NDArray[np.uint8]]]] = {k: [] for k in candidates}
    fetcher = _Fetcher(source, catalog.scan.fingerprint, spec, data)
    for first, last in ((0, most), (most, 2 * most)):
        wanted = {k: kept[first:last] for k, kept in candidates.items() if len(images[k]) < most}
        for k, digest, thumb_HWC in fetcher.thumbnails(wanted):
            images[k].append((digest, thumb_HWC))
    parts = [
        [thumb_HWC for _, thumb_HWC in sorted(part, key=lambda image: image[0])[:most]]
        for part in images.values()
    ]
    if not any(parts):
        return None
    columns = _IMAGES if spec.classes else _COLUMNS
    sheet = draw_sheet(parts, thumbnail_spec(spec), columns)
    return SourceSheet(sheet, sum(map(len, parts)), tuple(images) if spec.classes else ())


class _Fetcher:
    """Fetches and converts images until the limits of bytes and pixels."""

    def __init__(self, source: Source, fingerprint: str, spec: ImageSpec, data: DataConfig) -> None:
        self._source, self._fingerprint = source, fingerprint
        self._spec = spec
        self._resize: Resize = data.resize
        self._thumb = thumbnail_spec(spec)
        self._bytes = self._pixels = 0

    def thumbnails(
        self, wanted: Mapping[int, Sequence[SampledRow]]
    ) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
        """Class, digest and thumbnail (H, W, C) of each row whose image a dataset would accept."""
        blocks = self._source.block_fields
        rows = [
            (tuple(row.ref[:blocks]) if blocks else (), rank, k, row)
            for k, kept in wanted.items()
            for rank, row in enumerate(kept)
        ]
        # Blocks together, and the first image of every class before the second of any.
        rows.sort(key=lambda item: item[:3])
        refs = [row.ref for *_, row in rows]
        is_exact = self._resize == "none"
        for (*_, k, row), image in zip(
            rows, self._source.fetch(refs, self._fingerprint), strict=False
        ):
            try:
                pixels = pixels_of(image, self._spec if is_exact else None)
                self._pixels += pixels.shape[0] * pixels.shape[1]
                image_HWC = converted(pixels, self._spec, self._resize)
                yield k, row.digest, to_spec(image_HWC, self._thumb, "fit")
            except Rejected:
                pass
            self._bytes += len(image) if isinstance(image, bytes) else 0
            if self._bytes > _FETCHED_BYTES or self._pixels > _DECODED_PIXELS:
                return
