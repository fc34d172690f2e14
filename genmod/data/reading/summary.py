"""What a dataset is, for people: spec, counts, statistics, sizes, versions, and a sheet of its images.

Numbers are from the manifest alone, so a large dataset is told of as soon as a small one; the sheet reads
some shards. Letters: C channels, K classes, N images, H height, W width.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

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

COLUMNS = 16
"""Images of a class, or of a row of the sheet."""

ROWS = 10
"""Of the sheet where there are no classes."""

MAX_CLASSES = 40
"""Classes on the sheet: the first ones."""

FEW_SHARDS, MAX_SHARDS = 16, 256
"""Shards that images are taken from, and that are looked at for images of a rare class."""

THUMB_PIXELS = 64
"""Larger images are scaled down to it on their longer side, smaller ones up by a whole number."""

PAPER = 128
"""What shows where there is no image."""

REASONS = 5
"""Reasons of refusals that are told, the most frequent ones."""


def dataset_summary(root: str, manifest: DatasetManifest) -> dict[str, Any]:
    """JSON values: what a dataset is, by its manifest, and why inputs were refused."""
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
    told: dict[str, Any] = {
        "rows": sum(rows_S),
        "shards": len(shards),
        "rows_per_shard": [min(rows_S), max(rows_S)],
        "tar_bytes": tar_bytes,
        "index_bytes": sum(shard.index.size_bytes for shard in shards),
        "bytes_per_image": round(tar_bytes / sum(rows_S), 1),
    }
    values = manifest.metadata.get("splits", {}).get(split)
    if values is not None:
        metadata = RowStats.model_validate(values)
        told["rows_by_class"] = list(metadata.rows_K)
        stats = dataset_metadata({"train": metadata})["stats"]  # of any split; in network units
        told["pixel_mean_C"] = [(mean + 1.0) * LEVELS / 2 - 0.5 for mean in stats["mean"]]
        told["pixel_std_C"] = [std * LEVELS / 2 for std in stats["std"]]
    return told


def _reasons(root: str, manifest: DatasetManifest) -> dict[str, int]:
    """The most frequent reasons of refusals, up to the first colon or semicolon of each."""
    if not manifest.quarantined or all(entry.path != QUARANTINE for entry in manifest.files):
        return {}
    url = storage.join(root, QUARANTINE)
    try:
        table = read_table(storage.read_bytes(url), url, ["reason"])
    except FileNotFoundError:
        raise DataError(f"{url} is not there, but the dataset's manifest names it") from None
    words = (reason.split(":")[0].split(";")[0] for reason in table["reason"].to_pylist())
    return dict(Counter(words).most_common(REASONS))


@dataclass(frozen=True)
class ContactSheet:
    """A picture of some images of a split."""

    png: bytes
    split: Split
    images: int
    classes: int
    """Rows from the top, a class a row; 0 where images have no labels."""


def contact_sheet(root: str, manifest: DatasetManifest, split: Split | None = None) -> ContactSheet:
    """Images of a split in a mixed order that is always the same, a class a row where there are labels.

    Args:
        root: URL of the dataset.
        manifest: its manifest.
        split: the first that has rows if not given.

    Raises:
        ConfigError: there is nothing to show.
        DataError: an image cannot be read.
    """
    there: list[Split] = [s for s in SPLITS if manifest.rows(s)]
    split = split or (there[0] if there else "train")
    if split not in there:
        others = ", ".join(there) or "none"
        raise ConfigError(f"{root}: the {split} split has no rows; those that have some: {others}")
    shards = manifest.of_split(split)
    order = shuffle(torch.arange(len(shards)), len(shards), 0, f"inspect/{split}").tolist()
    mixed = [shards[number] for number in order[:MAX_SHARDS]]
    classes = min(manifest.spec.classes, MAX_CLASSES)
    picks_K = _picks(root, manifest, mixed, classes)
    columns = min(COLUMNS, max(map(len, picks_K)))
    thumb = _thumb(manifest.spec)
    cells = -(-max(map(len, picks_K)) // columns) * columns
    blank_CHW = np.full(thumb.shape, PAPER, dtype=np.uint8)
    images_NCHW = np.stack([blank_CHW] * (cells * len(picks_K)))
    for place in sorted({place for picks in picks_K for _, place, _ in picks}):
        here = [
            (k * cells + n, pick[2])
            for k, picks in enumerate(picks_K)
            for n, pick in enumerate(picks)
            if pick[1] == place
        ]
        reader = shard_reader(root, manifest, mixed[place])
        pixels_NCHW = reader.pixels(np.array([row for _, row in here]))
        reader.close()
        for (cell, _), image_CHW in zip(here, pixels_NCHW, strict=True):
            thumb_HWC = to_spec(image_CHW.transpose(1, 2, 0), thumb, "fit")
            images_NCHW[cell] = thumb_HWC.transpose(2, 0, 1)
    scale = max(1, THUMB_PIXELS // max(thumb.height, thumb.width))
    picture_CHW = grid(torch.from_numpy(images_NCHW), columns, scale, PAPER)
    return ContactSheet(png(picture_CHW), split, sum(map(len, picks_K)), classes)


_Pick = tuple[int, int, int]
"""How-manieth of its class in its shard, which shard, which row of it."""


def _picks(
    root: str, manifest: DatasetManifest, shards: list[ShardEntry], classes: int
) -> list[list[_Pick]]:
    """Rows to show of each class, or of all: some of each shard first, so that the sheet is varied."""
    found: list[list[_Pick]] = [[] for _ in range(max(classes, 1))]
    wanted = COLUMNS if classes else COLUMNS * ROWS
    for place, shard in enumerate(shards):
        if place >= FEW_SHARDS and all(len(mine) >= wanted for mine in found):
            break
        reader = shard_reader(root, manifest, shard)
        row_N = shuffle(torch.arange(shard.rows), shard.rows, 0, "inspect/rows").numpy()
        label_N = reader.find(row_N).label_N if classes else np.zeros_like(row_N)
        reader.close()
        for k, mine in enumerate(found):
            rows = row_N[label_N == k][:wanted].tolist()
            mine += [(number, place, row) for number, row in enumerate(rows)]
    return [sorted(mine)[:wanted] for mine in found]


def _thumb(spec: ImageSpec) -> ImageSpec:
    """The shape of an image on the sheet."""
    shrink = max(1.0, max(spec.height, spec.width) / THUMB_PIXELS)
    height, width = (max(1, round(side / shrink)) for side in (spec.height, spec.width))
    return ImageSpec(channels=spec.channels, height=height, width=width, classes=0)
