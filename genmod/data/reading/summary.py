"""Summary of a dataset: spec, counts, statistics, sizes, versions, and a contact sheet of its images.

The numbers come from the manifest alone, so a large dataset takes no longer than a small one; the contact
sheet reads a few shards. Letters: C channels, K classes, N images, H height, W width, S shards.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from genmod.data.format.foreign import to_spec
from genmod.data.format.image_grid import draw_sheet, thumbnail_spec
from genmod.data.format.index import read_rejected
from genmod.data.reading.reader import shard_reader
from genmod.errors import ConfigError
from genmod.manifest import SPLITS, DatasetManifest, Split, StoredShard
from genmod.manifest.statistics import network_stats
from genmod.permutation import shuffle
from genmod.units import LEVELS

SHEET_COLUMNS = 16
"""Images in a row of the contact sheet."""

SHEET_ROWS = 10
"""Rows of the contact sheet of unlabelled data."""

_SHEET_CLASSES = 40
"""Maximum number of classes on the contact sheet."""

_SHARDS, _MAX_SHARDS = 16, 256
"""Shards to read for a contact sheet, and the maximum while images of a rare class are missing."""

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
        "splits": {s: _split(root, manifest, s) for s in SPLITS if manifest.rows(s)},
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
        "selection": metadata.get("selection"),
        "split_rule": _split_rule(metadata.get("census")),
    }


def _split_rule(census: Any) -> str | None:
    """What decided the split of a row, by the census in the manifest; None without a census."""
    rule = cast("dict[str, Any]", census).get("splits") if isinstance(census, dict) else None
    return rule if isinstance(rule, str) else None


def _split(root: str, manifest: DatasetManifest, split: Split) -> dict[str, Any]:
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
    if "splits" in manifest.metadata and (row_stats := manifest.row_stats(root).get(split)):
        summary["rows_by_class"] = list(row_stats.rows_K)
        stats = network_stats(row_stats)
        summary["pixel_mean_C"] = [(mean + 1.0) * LEVELS / 2 - 0.5 for mean in stats["mean"]]
        summary["pixel_std_C"] = [std * LEVELS / 2 for std in stats["std"]]
    return summary


def _reasons(root: str, manifest: DatasetManifest) -> dict[str, int]:
    """Count the most frequent reasons of rejection, each up to its first colon or semicolon."""
    if not manifest.quarantined:
        return {}
    reasons = (reason for _, _, reason in read_rejected(root, manifest))
    kinds = (reason.split(":")[0].split(";")[0] for reason in reasons)
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
    shards = manifest.stored(root, split)
    order = shuffle(torch.arange(len(shards)), len(shards), 0, f"inspect/{split}").tolist()
    shuffled = [shards[number] for number in order[:_MAX_SHARDS]]
    classes = min(manifest.spec.classes, _SHEET_CLASSES)
    picks_K = _picks(manifest, shuffled, classes)
    # Read each shard once.
    thumb = thumbnail_spec(manifest.spec)
    thumbs: dict[_Pick, NDArray[np.uint8]] = {}
    for number in sorted({pick.shard for picks in picks_K for pick in picks}):
        chosen = [pick for picks in picks_K for pick in picks if pick.shard == number]
        reader = shard_reader(manifest, shuffled[number])
        pixels_NCHW = reader.pixels(np.array([pick.row for pick in chosen]))
        reader.close()
        for pick, image_CHW in zip(chosen, pixels_NCHW, strict=True):
            thumbs[pick] = to_spec(image_CHW.transpose(1, 2, 0), thumb, "fit")
    parts = [[thumbs[pick] for pick in picks] for picks in picks_K]
    return ContactSheet(draw_sheet(parts, thumb, SHEET_COLUMNS), split, len(thumbs), classes)


class _Pick(NamedTuple):
    """A row on the contact sheet. Sorted by rank, picks alternate between shards."""

    rank: int
    """Position among the rows of its class in its shard."""
    shard: int
    row: int


def _picks(manifest: DatasetManifest, shards: list[StoredShard], classes: int) -> list[list[_Pick]]:
    """Choose rows of each class, or of all data, spread over the shards."""
    picks_K: list[list[_Pick]] = [[] for _ in range(max(classes, 1))]
    count = SHEET_COLUMNS if classes else SHEET_COLUMNS * SHEET_ROWS
    for number, shard in enumerate(shards):
        if number >= _SHARDS and all(len(picks) >= count for picks in picks_K):
            break
        reader = shard_reader(manifest, shard)
        row_N = shuffle(torch.arange(shard.rows), shard.rows, 0, "inspect/rows").numpy()
        label_N = reader.find(row_N).label_N if classes else np.zeros_like(row_N)
        reader.close()
        for k, picks in enumerate(picks_K):
            rows = row_N[label_N == k][:count].tolist()
            picks += [_Pick(rank, number, row) for rank, row in enumerate(rows)]
    return [sorted(picks)[:count] for picks in picks_K]
