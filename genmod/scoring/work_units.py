"""How a split is cut into pieces of scoring work, and how one piece is scored.

The cut is a pure function of (manifest, configuration, seed). Letters: B rows, N rows of a shard.
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
from genmod.manifest import DatasetManifest, ShardEntry, Split
from genmod.permutation import shuffle
from genmod.rng import rng_for
from genmod.scoring.ood_scores import COMPRESSED_COLUMN, compressed_bits
from genmod.scoring.table import Rows, ScoreConfig, Scores

SCORE_PURPOSE = "score"
"""Of the randomness of scores; a row is addressed by its index in the split."""


HELD_OUT_SPLIT: Split = "val"
"""The split that estimators may be fitted to."""


class ShardSlice(Config):
    """Some rows of one shard: one piece of work and one Parquet file."""

    name: str
    """Of the file, without its extension: split and shard, and a number if the shard is cut."""
    shard: ShardEntry
    start: int
    """Together with ``stop``: which of the shard's rows that are scored."""
    stop: int
    chosen: tuple[int, ...] | None = None
    """If not all of the shard's rows are scored: the numbers, within the shard, of this slice's."""

    def __len__(self) -> int:
        return self.stop - self.start

    def rows(self) -> Sequence[int]:
        """Numbers of the rows within the shard."""
        return range(self.start, self.stop) if self.chosen is None else self.chosen


def rows_to_score(manifest: DatasetManifest, config: ScoreConfig) -> int:
    """How many rows a job scores.

    Raises:
        ConfigError: the split is empty, or has fewer rows than are asked for.
    """
    rows = manifest.rows(config.split)
    if not rows:
        raise ConfigError(
            f"recipe: score.split is {config.split!r}, but that split of the dataset has no rows"
        )
    if config.max_rows is not None and config.max_rows > rows:
        raise ConfigError(
            f"recipe: score.max_rows is {config.max_rows}, but the {config.split} split has {rows} rows; "
            "give fewer, or leave it out for all"
        )
    return rows if config.max_rows is None else config.max_rows


def shard_slices(manifest: DatasetManifest, config: ScoreConfig, seed: int) -> Iterator[ShardSlice]:
    """Cut the rows that are to be scored into pieces, in the order of the split.

    With ``max_rows`` the rows are those at the first positions of a permutation keyed by the seed, so a
    larger ``max_rows`` adds rows and keeps the ones before.
    """
    rows, total = rows_to_score(manifest, config), manifest.rows(config.split)
    picked = None
    if rows < total:
        picked = shuffle(torch.arange(rows), total, seed, "score/rows").sort().values
    first = 0
    for ordinal, shard in enumerate(manifest.of_split(config.split)):
        chosen: list[int] | None = None
        count = shard.rows
        if picked is not None:
            here = picked[(picked >= first) & (picked < first + shard.rows)] - first
            chosen = [int(row) for row in here]
            count = len(chosen)
        first += shard.rows
        stem = f"{config.split}-{ordinal:06d}"  # tars of a grown dataset may share a base name
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
    model: GenerativeModel, options: ScoreOptions, root: str, dataset: DatasetManifest, *, seed: int
) -> Prepared:
    """Fit what ``options`` leaves open to held-out rows of a dataset, drawn by the seed.

    Raises:
        DataError: a row cannot be read.
    """
    device = next(model.parameters()).device
    batches: list[Batch] = []
    if count := options.held_out_rows:
        config = ScoreConfig(split=HELD_OUT_SPLIT, max_rows=count, rows_per_task=count)
        for part in shard_slices(dataset, config, seed):
            reader = RowReader(root, dataset.spec, [part.shard])
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
    """Log-likelihoods of rows of a reader, computed in micro-batches in their order, on the model's device.

    Each row's size when compressed is a column too. Rows that ``known`` has, of the same split, are taken
    from there.

    Raises:
        DataError: a row cannot be read.
        GenmodError: a log-likelihood is not a finite number.
    """
    row_N = np.asarray(rows, dtype=np.int64)
    index_N = reader.find(row_N).index_N
    if known is None:
        return _scored(model, options, reader, row_N, micro_batch, seed=seed)
    there = {index: place for place, index in enumerate(known.rows.index_B.tolist())}
    old_N = np.array([index in there for index in index_N.tolist()], dtype=bool)
    parts = [known.take(torch.tensor([there[i] for i in index_N[old_N].tolist()]).long())]
    if not old_N.all():
        parts.append(_scored(model, options, reader, row_N[~old_N], micro_batch, seed=seed))
    order_N = np.argsort(np.concatenate((old_N.nonzero()[0], (~old_N).nonzero()[0])))
    return Scores.together(parts).take(torch.from_numpy(order_N))


def _scored(
    model: GenerativeModel,
    options: ScoreOptions,
    reader: RowReader,
    row_N: NDArray[np.int64],
    micro_batch: int,
    *,
    seed: int,
) -> Scores:
    device = next(model.parameters()).device
    parts: list[LogProb] = []
    sizes: list[torch.Tensor] = []
    for first in range(0, len(row_N), micro_batch):
        batch = reader.read(row_N[first : first + micro_batch])
        sizes.append(compressed_bits(batch.pixels_BCHW))
        batch = batch.to(device)
        parts.append(model.log_prob(batch, rng_for(seed, SCORE_PURPOSE, batch.index_B), options))
    keys = reader.keys()
    places = reader.find(row_N)
    scored = Rows(
        keys=[keys[row] for row in row_N.tolist()],
        index_B=torch.from_numpy(places.index_N),
        labels_B=torch.from_numpy(places.label_N.astype(np.int64)) if reader.spec.classes else None,
    )
    return Scores.joined(scored, parts).with_columns({COMPRESSED_COLUMN: torch.cat(sizes)})
