"""Divides the rows of a split into tasks: a pure function of (manifest, configuration, seed)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from genmod.config import Config
from genmod.data.reading.reader import RowReader
from genmod.errors import ConfigError, DataError, sanitize
from genmod.interface.batch import Batch
from genmod.interface.log_prob import Prepared
from genmod.interface.model import GenerativeModel
from genmod.interface.options import ScoreOptions
from genmod.manifest import DatasetManifest, Split, StoredShard
from genmod.permutation import shuffle
from genmod.rng import rng_for
from genmod.scoring.config import ScoreConfig

SCORE_PURPOSE = "score"
"""Purpose of the random numbers of scores; a row is addressed by its index in the split."""


HELD_OUT_SPLIT: Split = "val"
"""The split whose rows estimators may be fitted to."""


class ShardSlice(Config):
    """Consecutive scored rows of one shard: one task and one Parquet file."""

    name: str
    """Split and shard number, and further numbers if the shard is divided. File names start with it."""
    shard: StoredShard
    start: int
    """First row, counted among the shard's rows that are scored."""
    stop: int
    """End of the rows, exclusive."""
    chosen: tuple[int, ...] | None = None
    """Positions of this slice's rows in the shard, if only a part of the shard is scored."""

    def __len__(self) -> int:
        return self.stop - self.start

    def rows(self) -> Sequence[int]:
        """Positions of the rows in the shard."""
        return range(self.start, self.stop) if self.chosen is None else self.chosen

    def halves(self) -> list[ShardSlice]:
        """The rows in two parts, in order; none if there is one row only."""
        middle = (self.start + self.stop) // 2
        parts = [(self.start, middle), (middle, self.stop)]
        return [self._part(start, stop) for start, stop in parts] if len(self) > 1 else []

    def _part(self, start: int, stop: int) -> ShardSlice:
        stem = "-".join(self.name.split("-")[:2])
        chosen = self.chosen
        if chosen is not None:
            chosen = chosen[start - self.start : stop - self.start]
        name = f"{stem}-rows-{start:06d}-{stop:06d}"
        return ShardSlice(name=name, shard=self.shard, start=start, stop=stop, chosen=chosen)

    def micro_batches(self, size: int) -> int:
        """Number of micro-batches of ``size`` rows in which the rows are scored."""
        return -(-self.stop // size) - self.start // size


def rows_to_score(manifest: DatasetManifest, config: ScoreConfig) -> int:
    """Number of rows that a job scores.

    Raises:
        ConfigError: the split is empty, or has fewer rows than ``max_rows``.
    """
    rows = manifest.rows(config.split)
    if not rows:
        raise ConfigError(
            f"recipe: score.split is {config.split!r}, but this split of the data set is empty; "
            "set score.split to a split with rows"
        )
    if config.max_rows is not None and config.max_rows > rows:
        raise ConfigError(
            f"recipe: score.max_rows: got {config.max_rows}, expected at most {rows}, the rows of split "
            f"{config.split}; reduce it, or remove it to score all rows"
        )
    return rows if config.max_rows is None else config.max_rows


def shard_slices(
    root: str, manifest: DatasetManifest, config: ScoreConfig, seed: int
) -> Iterator[ShardSlice]:
    """Divide the rows of the dataset at ``root`` into tasks, in the order of the split.

    With ``max_rows``, the rows are the first ones of a permutation that depends on the seed. So a larger
    ``max_rows`` adds rows and keeps the others.
    """
    rows, total = rows_to_score(manifest, config), manifest.rows(config.split)
    picked = None
    if rows < total:
        picked = shuffle(torch.arange(rows), total, seed, "score/rows").sort().values
    first = 0
    for ordinal, shard in enumerate(manifest.stored(root, config.split)):
        chosen: list[int] | None = None
        count = shard.rows
        if picked is not None:
            here = picked[(picked >= first) & (picked < first + shard.rows)] - first
            chosen = [int(row) for row in here]
            count = len(chosen)
        first += shard.rows
        stem = (
            f"{config.split}-{ordinal:06d}"  # shards of an extended data set may share a base name
        )
        for number, start in enumerate(range(0, count, config.rows_per_task)):
            stop = min(start + config.rows_per_task, count)
            yield ShardSlice(
                name=stem if count <= config.rows_per_task else f"{stem}-{number:03d}",
                shard=shard,
                start=start,
                stop=stop,
                chosen=None if chosen is None else tuple(chosen[start:stop]),
            )


def shard_number(path: str, split: str, shards: int) -> int:
    """Number of the shard, of ``shards`` of its split, whose rows a table has. DataError if it has none."""
    match = re.match(rf"{re.escape(split)}-([0-9]{{6,9}})-", path)
    if match is None or int(match[1]) >= shards:
        raise DataError(f"{sanitize(path[:200])}: not the name of a table of scores; score again")
    return int(match[1])


def prepare(
    model: GenerativeModel,
    options: ScoreOptions,
    root: str,
    dataset: DatasetManifest,
    *,
    seed: int,
    label_map: Sequence[int] = (),
) -> Prepared:
    """Prepare scoring: fit open options (such as sigma) to held-out rows of a data set.

    Args:
        model: the model.
        options: its score options.
        root: URL of the data set.
        dataset: its manifest.
        seed: selects the rows and the random numbers.
        label_map: the model's number of each of the dataset's classes; empty if they are equal.

    Raises:
        DataError: a row cannot be read.
    """
    device = next(model.parameters()).device
    batches: list[Batch] = []
    if count := options.held_out_rows:
        config = ScoreConfig(split=HELD_OUT_SPLIT, max_rows=count, rows_per_task=count)
        for part in shard_slices(root, dataset, config, seed):
            reader = RowReader(dataset.spec, [part.shard], label_maps=[label_map])
            batches.append(reader.read(np.asarray(part.rows(), dtype=np.int64)))
            reader.close()
    batch = Batch.joined(batches).to(device) if batches else None
    index = torch.zeros(0, dtype=torch.int64, device=device) if batch is None else batch.index_B
    return model.prepare_scores(
        batch, rng_for(seed, f"{SCORE_PURPOSE}/prepare", index, device), options
    )
