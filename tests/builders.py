"""Builders of small datasets that tests of several rooms share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from genmod.data.format.shards import Row, write_shard
from genmod.manifest import DatasetManifest, ImageSpec, RowStats, dataset_metadata, publish


def write_noise(
    root: str, spec: ImageSpec, rows: Mapping[str, int], class_names: tuple[str, ...] = ()
) -> DatasetManifest:
    """Publish a dataset of noise with labels: one shard for each split, with that many rows."""
    statistics, shards = {}, []
    for split, count in rows.items():
        shape = (count, spec.height, spec.width, spec.channels)
        pixels = np.random.default_rng(count).integers(0, 256, shape, np.uint8)
        samples = [Row(f"{split}-{i}", i, pixels[i], label=i % spec.classes) for i in range(count)]
        shard, statistics[split] = write_shard(root, f"{split}-000000", split, spec, samples)
        shards.append(shard)
    manifest = DatasetManifest(
        fingerprint="noise",
        spec=spec,
        shards=tuple(shards),
        metadata=dataset_metadata(statistics),
        class_names=class_names,
    )
    return publish(root, manifest)


SMALL_SPEC = ImageSpec(channels=1, height=4, width=4, classes=2)


def write_two_shards(root: str) -> DatasetManifest:
    """Publish a dataset of 13 rows of ``SMALL_SPEC``, all in the split train: 7 and 6 in two shards."""
    shards, total = [], RowStats()
    for number, count in enumerate((7, 6)):
        rows = [
            Row(f"{number}-{i}", 7 * number + i, np.full((4, 4, 1), 9 * i, np.uint8), i % 2)
            for i in range(count)
        ]
        shard, stats = write_shard(root, f"train-{number:06d}", "train", SMALL_SPEC, rows)
        shards.append(shard)
        total += stats
    manifest = DatasetManifest(
        fingerprint="f",
        spec=SMALL_SPEC,
        shards=tuple(shards),
        metadata=dataset_metadata({"train": total}),
    )
    return publish(root, manifest)
