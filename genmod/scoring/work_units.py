"""Divides the rows of a split into tasks, and scores the rows of one task.

The division is a pure function of (manifest, configuration, seed). Letters: B rows, N rows of a shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from genmod.config import Config
from genmod.data.reading.reader import RowReader
from genmod.errors import ConfigError
from genmod.interface.batch import Batch
from genmod.interface.log_prob import LogProb, Prepared
from genmod.interface.model import GenerativeModel
from genmod.interface.options import ScoreOptions
from genmod.manifest import DatasetManifest, Split, StoredShard
from genmod.permutation import shuffle
from genmod.rng import rng_for
from genmod.scoring.ood_scores import COMPRESSED_COLUMN, compressed_bits
from genmod.scoring.table import Rows, ScoreConfig, Scores

SCORE_PURPOSE = "score"
"""Purpose of the random numbers of scores; a row is addressed by its index in the split."""


HELD_OUT_SPLIT: Split = "val"
"""The split whose rows estimators may be fitted to."""


class ShardSlice(Config):
    """Consecutive scored rows of one shard: one task and one Parquet file."""

    name: str
    """File name without extension: split and shard number, and a number if the shard is divided."""
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


def score_rows(
    model: GenerativeModel,
    options: ScoreOptions,
    reader: RowReader,
    rows: Sequence[int],
    micro_batch: int,
    *,
    seed: int,
    known: Scores | None = None,
) -> Scores:
    """Score rows in micro-batches on the model's device; add the column of compressed sizes.

    Args:
        model: the model.
        options: its score options.
        reader: reads the rows.
        rows: positions of the rows in the reader.
        micro_batch: rows per forward pass.
        seed: of the random numbers.
        known: scores of rows of the same split that are reused instead of computed again.

    Raises:
        DataError: a row cannot be read.
        GenmodError: a log-likelihood is not finite.
    """
    row_N = np.asarray(rows, dtype=np.int64)
    index_N = reader.find(row_N).index_N
    if known is None:
        return _compute_scores(model, options, reader, row_N, micro_batch, seed=seed)
    # Reuse known scores, compute the others, and restore the order of the rows.
    position = {index: number for number, index in enumerate(known.rows.index_B.tolist())}
    known_N = np.array([index in position for index in index_N.tolist()], dtype=bool)
    parts = [known.take(torch.tensor([position[i] for i in index_N[known_N].tolist()]).long())]
    if not known_N.all():
        parts.append(
            _compute_scores(model, options, reader, row_N[~known_N], micro_batch, seed=seed)
        )
    order_N = np.argsort(np.concatenate((known_N.nonzero()[0], (~known_N).nonzero()[0])))
    return Scores.concatenate(parts).take(torch.from_numpy(order_N))


def _compute_scores(
    model: GenerativeModel,
    options: ScoreOptions,
    reader: RowReader,
    row_N: NDArray[np.int64],
    micro_batch: int,
    *,
    seed: int,
) -> Scores:
    """Scores of all rows, in their order."""
    device = next(model.parameters()).device
    parts: list[LogProb] = []
    sizes: list[torch.Tensor] = []
    for first in range(0, len(row_N), micro_batch):
        batch = reader.read(row_N[first : first + micro_batch])
        sizes.append(compressed_bits(batch.pixels_BCHW))
        batch = batch.to(device)
        parts.append(model.log_prob(batch, rng_for(seed, SCORE_PURPOSE, batch.index_B), options))
    keys = reader.keys()
    locations = reader.find(row_N)
    labels_N = locations.label_N.astype(np.int64)
    scored = Rows(
        keys=[keys[row] for row in row_N.tolist()],
        index_B=torch.from_numpy(locations.index_N),
        labels_B=torch.from_numpy(labels_N) if reader.spec.classes else None,
    )
    return Scores.from_log_probs(scored, parts).with_columns({COMPRESSED_COLUMN: torch.cat(sizes)})
