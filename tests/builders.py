"""Builders of small datasets that tests of several rooms share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from genmod import units
from genmod.data.format.index import read_index
from genmod.data.format.shards import Row, write_shard
from genmod.manifest import (
    DatasetManifest,
    ImageSpec,
    Manifest,
    RowStats,
    Split,
    dataset_metadata,
    publish,
    write_file,
)
from genmod.scoring.label import ScoreLabel
from genmod.scoring.moments import RunningMoments
from genmod.scoring.table import Rows, Scores, summary


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


def write_scores(
    root: str,
    dataset: DatasetManifest,
    dataset_root: str,
    split: Split,
    *,
    rows_per_table: int = 3,
    every: int = 1,
    model: str = "m" * 64,
) -> Manifest:
    """Publish scores of the rows of a split: nats is minus the row's index, p_corrected is index / 100.

    Args:
        root: URL of their folder.
        dataset: the manifest of the dataset.
        dataset_root: URL of its folder.
        split: the split.
        rows_per_table: rows of each table, which never has rows of two shards.
        every: score every row, every second one, ...
        model: digest of the model.
    """
    label = ScoreLabel(
        label="exact", estimator="test", of="model", measure=units.COUNTS, budget={}
    )  # fmt: skip
    files, counts, total = [], [], RunningMoments()
    for shard in dataset.stored(dataset_root, split):
        table = read_index(shard).to_pydict()
        rows = range(0, shard.rows, every)
        for start in range(0, len(rows), rows_per_table):
            part = rows[start : start + rows_per_table]
            index_B = torch.tensor([table["index"][row] for row in part])
            keys = [table["key"][row] for row in part]
            labels = [table["label"][row] for row in part]
            scores = Scores(
                Rows(keys, index_B, None if None in labels else torch.tensor(labels)),
                -index_B.double(),
                torch.zeros(len(part)).double(),
                label,
                {"p_corrected": index_B.double() / 100},
            )
            data = scores.to_parquet(dataset.spec.dims, {"split": split})
            files.append(write_file(root, f"{split}-{len(files):06d}.parquet", data))
            counts.append(len(part))
            total = total.merged(RunningMoments.of(scores.nats_B))
    manifest = Manifest(
        kind="scores",
        fingerprint=f"scores-{split}-{every}",
        parents={"model": model, "dataset": dataset.digest},
        files=tuple(files),
        metadata={"split": split, "rows_of_files": counts}
        | summary([total], dataset.spec.dims, label),
    )
    return publish(root, manifest)
