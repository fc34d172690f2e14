"""Rows of datasets for evaluation. Letters: N rows, C channels, H height, W width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genmod.config import fingerprint
from genmod.data.reading.reader import split_reader
from genmod.errors import ConfigError
from genmod.manifest import DatasetManifest, ImageSpec, Split
from genmod.permutation import shuffle
from genmod.rng import rng_for

_READ_ROWS = 4096
"""Rows that are decoded at a time."""


@dataclass(frozen=True)
class Images:
    """Pixels and labels of some rows of a dataset."""

    pixels_NCHW: Tensor
    """(N, C, H, W), uint8."""
    labels_N: Tensor | None
    """(N,), int64; None for data without labels."""

    def __len__(self) -> int:
        return len(self.pixels_NCHW)

    def part(self, begin: int, end: int) -> Images:
        """Rows from ``begin`` to ``end``, the latter excluded."""
        labels_N = self.labels_N
        return Images(
            self.pixels_NCHW[begin:end], None if labels_N is None else labels_N[begin:end]
        )

    def rows(self, row_N: Tensor) -> Images:
        """Some rows, by their numbers."""
        labels_N = self.labels_N
        return Images(self.pixels_NCHW[row_N], None if labels_N is None else labels_N[row_N])

    def first(self, rows: int) -> Images:
        """The first rows, at most ``rows``."""
        return self.part(0, rows)


def read_first(root: str, manifest: DatasetManifest, split: Split, at_most: int) -> Images:
    """The first rows of a split, at most ``at_most``. ConfigError if the split is empty."""
    return _read(root, manifest, split, torch.arange(min(at_most, manifest.rows(split))))


def read_shuffled(root: str, manifest: DatasetManifest, split: Split, at_most: int) -> Images:
    """Rows of a split in a shuffled order that is the same for every run, so any part is random."""
    rows = manifest.rows(split)
    positions_N = torch.arange(min(at_most, rows))
    return _read(root, manifest, split, shuffle(positions_N, rows, 0, f"evaluate/{split}"))


def _read(root: str, manifest: DatasetManifest, split: Split, row_N: Tensor) -> Images:
    if not len(row_N):
        raise ConfigError(
            f"{root}: the {split} split has no rows, but evaluate needs some; "
            f"raise data.splits.{split} in the recipe"
        )
    reader = split_reader(root, manifest, split)
    try:
        batches = [reader.read(part_N.numpy()) for part_N in row_N.split(_READ_ROWS)]
    finally:
        reader.close()
    labels = [batch.labels_B for batch in batches if batch.labels_B is not None]
    pixels_NCHW = torch.cat([batch.pixels_BCHW for batch in batches])
    return Images(pixels_NCHW, torch.cat(labels) if labels else None)


def split_digest(manifest: DatasetManifest, split: Split) -> str:
    """Digest of the images of one split; other splits do not change it."""
    return fingerprint([shard.tar.sha256 for shard in manifest.of_split(split)])


def uniform_noise(rows: int, spec: ImageSpec, seed: int) -> Images:
    """Uniform noise as uint8 pixels, with balanced labels."""
    levels_NCHW = rng_for(seed, "evaluate/noise", range(rows)).integers(spec.levels, *spec.shape)
    pixels_NCHW = (levels_NCHW * (255 // (spec.levels - 1))).to(torch.uint8)
    labels_N = torch.arange(rows) % spec.classes if spec.classes else None
    return Images(pixels_NCHW, labels_N)
