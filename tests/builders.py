"""Builders of small datasets that tests of several rooms share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from genmod.data.format.shards import Row, dataset_metadata, write_shard
from genmod.manifest import DatasetManifest, ImageSpec, publish


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
