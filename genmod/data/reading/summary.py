"""Summary of a dataset: spec, counts, statistics, sizes, versions, and a contact sheet of its images.

The numbers come from the manifest alone, so a large dataset takes no longer than a small one; the contact
sheet reads a few shards. Letters: C channels, K classes, N images, H height, W width, S shards.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from genmod import storage
from genmod.data.format.codecs import to_spec
from genmod.data.format.image_grid import grid, png
from genmod.data.format.shards import QUARANTINE, RowStats, dataset_metadata, read_table
from genmod.data.reading.reader import shard_reader
from genmod.errors import ConfigError, DataError
from genmod.manifest import SPLITS, DatasetManifest, ImageSpec, ShardEntry, Split
from genmod.permutation import shuffle
from genmod.units import LEVELS

SHEET_COLUMNS = 16
"""Images in a row of the contact sheet."""

SHEET_ROWS = 10
"""Rows of the contact sheet of unlabelled data."""

SHEET_BACKGROUND = 128
"""Grey level of cells without an image."""

_SHEET_CLASSES = 40
"""Maximum number of classes on the contact sheet."""

_SHARDS, _MAX_SHARDS = 16, 256
"""Shards to read for a contact sheet, and the maximum while images of a rare class are missing."""

_THUMBNAIL_PIXELS = 64
"""Longer side of a thumbnail. Larger images are reduced to it, smaller ones enlarged by an integer."""

_MAX_REASONS = 5
"""Number of the most frequent reasons of rejection to list."""


def dataset_summary(root: str, manifest: DatasetManifest) -> dict[str, Any]:
    """Summarise a dataset as JSON values: spec, counts, statistics, sizes, reasons of rejection.

    Raises:
        DataError: the list of rejected inputs is missing or corrupt.
    """
    metadata = manifest.metadata
    return {
        "spec": manifest.spec.model_dump(mode="json"),
        "class_names": list(manifest.class_names),
        "splits": {s: _split(manifest, s) for s in SPLITS if manifest.rows(s)},
        "rows": sum(shard.rows for shard in manifest.shards),
        "shards": len(manifest.shards),
        "size_bytes": sum(s.tar.size_bytes + s.index.size_bytes for s in manifest.shards),
        "rejected": manifest.quarantined,
        "reasons": _reasons(root, manifest),
        "version": metadata.get("version", 1),
        "format": manifest.format,
        "digest": manifest.digest,
        "fingerprint": manifest.fingerprint,
        "parents": manifest.parents,
        "source": metadata.get("source"),
        "sample": metadata.get("sample"),
    }


def _split(manifest: DatasetManifest, split: Split) -> dict[str, Any]:
    shards = manifest.of_split(split)
    rows_S = [shard.rows for shard in shards]
    tar_bytes = sum(shard.tar.size_bytes for shard in shards)
    summary: dict[str, Any] = {
        "rows": sum(rows_S),
        "shards": len(shards),
        "rows_per_shard": [min(rows_S), max(rows_S)],
        "tar_bytes": tar_bytes,
        "index_bytes": sum(shard.index.size_bytes for shard in shards),
        "bytes_per_image": round(tar_bytes / sum(rows_S), 1),
    }
    values = manifest.metadata.get("splits", {}).get(split)
    if values is not None:
        row_stats = RowStats.model_validate(values)
        summary["rows_by_class"] = list(row_stats.rows_K)
        stats = dataset_metadata({"train": row_stats})["stats"]  # of any split; in network units
        summary["pixel_mean_C"] = [(mean + 1.0) * LEVELS / 2 - 0.5 for mean in stats["mean"]]
        summary["pixel_std_C"] = [std * LEVELS / 2 for std in stats["std"]]
    return summary


def _reasons(root: str, manifest: DatasetManifest) -> dict[str, int]:
    """Count the most frequent reasons of rejection, each up to its first colon or semicolon."""
    if not manifest.quarantined or all(entry.path != QUARANTINE for entry in manifest.files):
        return {}
    url = storage.join(root, QUARANTINE)
    try:
        table = read_table(storage.read_bytes(url), url, ["reason"])
    except FileNotFoundError:
        raise DataError(f"{url} does not exist, but the dataset's manifest lists it") from None
    kinds = (reason.split(":")[0].split(";")[0] for reason in table["reason"].to_pylist())
    return dict(Counter(kinds).most_common(_MAX_REASONS))


@dataclass(frozen=True)
class ContactSheet:
    """A grid of example images of a split."""

    png: bytes
    split: Split
    images: int
    classes: int
    """Number of classes shown, one per row from the top; 0 for unlabelled data."""


def contact_sheet(root: str, manifest: DatasetManifest, split: Split | None = None) -> ContactSheet:
    """Draw images of a split, one class per row if there are labels. The same dataset yields the same sheet.

    Args:
        root: URL of the dataset.
        manifest: manifest of the dataset.
        split: split to show; by default the first that has rows.

    Raises:
        ConfigError: the split has no rows.
        DataError: an image cannot be read.
    """
    non_empty: list[Split] = [s for s in SPLITS if manifest.rows(s)]
    split = split or (non_empty[0] if non_empty else "train")
    if split not in non_empty:
        others = ", ".join(non_empty) or "none"
        raise ConfigError(f"{root}: the {split} split has no rows; splits with rows: {others}")
    # Choose rows of a few shards in a shuffled order.
    shards = manifest.of_split(split)
    order = shuffle(torch.arange(len(shards)), len(shards), 0, f"inspect/{split}").tolist()
    shuffled = [shards[number] for number in order[:_MAX_SHARDS]]
    classes = min(manifest.spec.classes, _SHEET_CLASSES)
    picks_K = _picks(root, manifest, shuffled, classes)
    # Start with empty cells; every class begins a new row.
    columns = min(SHEET_COLUMNS, max(map(len, picks_K)))
    thumb = _thumbnail_spec(manifest.spec)
    cells = -(-max(map(len, picks_K)) // columns) * columns
    blank_CHW = np.full(thumb.shape, SHEET_BACKGROUND, dtype=np.uint8)
    images_NCHW = np.stack([blank_CHW] * (cells * len(picks_K)))
    # Read each shard once and put its images into their cells.
    for number in sorted({pick.shard for picks in picks_K for pick in picks}):
        cell_rows = [
            (k * cells + n, pick.row)
            for k, picks in enumerate(picks_K)
            for n, pick in enumerate(picks)
            if pick.shard == number
        ]
        reader = shard_reader(root, manifest, shuffled[number])
        pixels_NCHW = reader.pixels(np.array([row for _, row in cell_rows]))
        reader.close()
        for (cell, _), image_CHW in zip(cell_rows, pixels_NCHW, strict=True):
            thumb_HWC = to_spec(image_CHW.transpose(1, 2, 0), thumb, "fit")
            images_NCHW[cell] = thumb_HWC.transpose(2, 0, 1)
    scale = max(1, _THUMBNAIL_PIXELS // max(thumb.height, thumb.width))
    sheet_CHW = grid(torch.from_numpy(images_NCHW), columns, scale, SHEET_BACKGROUND)
    return ContactSheet(png(sheet_CHW), split, sum(map(len, picks_K)), classes)


class _Pick(NamedTuple):
    """A row on the contact sheet. Sorted by rank, picks alternate between shards."""

    rank: int
    """Position among the rows of its class in its shard."""
    shard: int
    row: int


def _picks(
    root: str, manifest: DatasetManifest, shards: list[ShardEntry], classes: int
) -> list[list[_Pick]]:
    """Choose rows of each class, or of all data, spread over the shards."""
    picks_K: list[list[_Pick]] = [[] for _ in range(max(classes, 1))]
    count = SHEET_COLUMNS if classes else SHEET_COLUMNS * SHEET_ROWS
    for number, shard in enumerate(shards):
        if number >= _SHARDS and all(len(picks) >= count for picks in picks_K):
            break
        reader = shard_reader(root, manifest, shard)
        row_N = shuffle(torch.arange(shard.rows), shard.rows, 0, "inspect/rows").numpy()
        label_N = reader.find(row_N).label_N if classes else np.zeros_like(row_N)
        reader.close()
        for k, picks in enumerate(picks_K):
            rows = row_N[label_N == k][:count].tolist()
            picks += [_Pick(rank, number, row) for rank, row in enumerate(rows)]
    return [sorted(picks)[:count] for picks in picks_K]


def _thumbnail_spec(spec: ImageSpec) -> ImageSpec:
    """Shape of an image on the contact sheet."""
    shrink = max(1.0, max(spec.height, spec.width) / _THUMBNAIL_PIXELS)
    height, width = (max(1, round(side / shrink)) for side in (spec.height, spec.width))
    return ImageSpec(channels=spec.channels, height=height, width=width, classes=0)
