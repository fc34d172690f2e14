"""Scores rows in micro-batches. A row that cannot be scored is left out, and the others have their scores.

All micro-batches have the same size, and a row has a fixed place in its own. Kernels round by size and place,
so the bits of a score do not depend on the other rows. Letters: B rows, N rows of a task, M rows of a
micro-batch with its filling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmod.data.reading.reader import RowReader
from genmod.errors import GenmodError, UnreadableRow
from genmod.interface.batch import Batch
from genmod.interface.log_prob import LogProb
from genmod.interface.model import GenerativeModel
from genmod.interface.options import ScoreOptions
from genmod.rng import rng_for
from genmod.scoring.ood_scores import COMPRESSED_COLUMN, compressed_bits
from genmod.scoring.receipt import UnscoredRow
from genmod.scoring.table import Rows, Scores
from genmod.scoring.work_units import SCORE_PURPOSE
from genmod.stopwatch import MODEL, READ, measured


@dataclass(frozen=True)
class ScoredRows:
    """The scores of some rows."""

    scores: Scores | None
    """Of all other rows, in order; None if there are none."""
    rejected: tuple[UnscoredRow, ...]
    """Rows that have no score, in order."""


def score_rows(
    model: GenerativeModel,
    options: ScoreOptions,
    reader: RowReader,
    rows: Sequence[int],
    micro_batch: int,
    *,
    seed: int,
    first: int = 0,
    known: Scores | None = None,
) -> ScoredRows:
    """Score rows in micro-batches on the model's device; add the column of compressed sizes.

    Args:
        model: the model.
        options: its score options.
        reader: reads the rows.
        rows: positions of the rows in the reader.
        micro_batch: rows per forward pass.
        seed: of the random numbers.
        first: number of the first row among all rows to score, which determines its place in a micro-batch.
        known: scores of rows of the same split that are reused instead of computed again.

    Raises:
        DataError: a shard cannot be read.
    """
    row_N = np.asarray(rows, dtype=np.int64)
    index_N = reader.find(row_N).index_N
    if known is None:
        return _Scorer(model, options, reader, row_N, micro_batch, seed, first).run(
            range(len(row_N))
        )
    # Reuse known scores, compute the others, and restore the order of the rows.
    position = {index: number for number, index in enumerate(known.rows.index_B.tolist())}
    known_N = np.array([index in position for index in index_N.tolist()], dtype=bool)
    scorer = _Scorer(model, options, reader, row_N, micro_batch, seed, first)
    computed = scorer.run((~known_N).nonzero()[0].tolist())
    parts = [] if computed.scores is None else [computed.scores]
    if known_N.any():
        parts.append(known.take(torch.tensor([position[i] for i in index_N[known_N].tolist()])))
    if not parts:
        return computed
    scores = Scores.concatenate(parts)
    place = {index: number for number, index in enumerate(index_N.tolist())}
    place_B = torch.tensor([place[index] for index in scores.rows.index_B.tolist()])
    return ScoredRows(scores.take(place_B.argsort()), computed.rejected)


@dataclass
class _Scorer:
    """Scores of rows of a reader, computed one micro-batch after the other."""

    model: GenerativeModel
    options: ScoreOptions
    reader: RowReader
    row_N: NDArray[np.int64]
    micro_batch: int
    seed: int
    first: int
    _rejected: dict[int, str] = field(default_factory=dict[int, str])
    """Number and reason of each row without a score."""
    _numbers: list[int] = field(default_factory=list[int])
    """Numbers of the rows with a score."""
    _parts: list[LogProb] = field(default_factory=list[LogProb])
    _sizes: list[Tensor] = field(default_factory=list[Tensor])

    def run(self, numbers: Sequence[int]) -> ScoredRows:
        """Score the rows with these numbers, ascending."""
        for _, group in groupby(numbers, lambda number: (self.first + number) // self.micro_batch):
            self._read_and_score(list(group))
        keys = self.reader.keys()
        locations = self.reader.find(self.row_N)
        rejected = tuple(
            UnscoredRow.of(keys[self.row_N[number]], int(locations.index_N[number]), reason)
            for number, reason in sorted(self._rejected.items())
        )
        if not self._numbers:
            return ScoredRows(None, rejected)
        labels_N = locations.label_N[self._numbers].astype(np.int64)
        scored = Rows(
            keys=[keys[row] for row in self.row_N[self._numbers].tolist()],
            index_B=torch.from_numpy(locations.index_N[self._numbers]),
            labels_B=torch.from_numpy(labels_N) if self.reader.spec.classes else None,
        )
        scores = Scores.from_log_probs(scored, self._parts)
        sizes = {COMPRESSED_COLUMN: torch.cat(self._sizes)}
        return ScoredRows(scores.with_columns(sizes), rejected)

    def _read_and_score(self, numbers: list[int]) -> None:
        """Score rows of one micro-batch, as far as they can be read."""
        try:
            with measured(READ):
                batch = self.reader.read(self.row_N[numbers])
        except UnreadableRow:
            readable: list[int] = []
            batches: list[Batch] = []
            for number in numbers:
                try:
                    batches.append(self.reader.read(self.row_N[[number]]))
                except UnreadableRow as error:
                    self._rejected[number] = str(error)
                else:
                    readable.append(number)
            if not readable:
                return
            numbers, batch = readable, Batch.joined(batches)
        self._score(numbers, batch)

    def _score(self, numbers: list[int], batch: Batch) -> None:
        """Score rows that were read. If the estimator fails, in halves, down to the row that is at fault."""
        try:
            result = self._log_prob(numbers, batch)
        except GenmodError as error:
            if type(error) is not GenmodError:  # of settings or of data, not of the numbers
                raise
            if len(numbers) == 1:
                self._rejected[numbers[0]] = str(error)
                return
            half = len(numbers) // 2
            self._score(numbers[:half], batch.rows(slice(0, half)))
            self._score(numbers[half:], batch.rows(slice(half, None)))
            return
        # Leave out rows with a number that is not finite.
        values = {"log-likelihood": result.nats_B, "standard error": result.stderr_B} | dict(
            result.columns
        )
        is_good_B = torch.ones(len(numbers), dtype=torch.bool)
        for name, value_B in values.items():
            for row in (~value_B.isfinite() & is_good_B).nonzero()[:, 0].tolist():
                self._rejected[numbers[row]] = f"its {name} is not finite: {float(value_B[row])}"
            is_good_B &= value_B.isfinite()
        if is_good_B.any():
            self._numbers += [numbers[row] for row in is_good_B.nonzero()[:, 0].tolist()]
            self._parts.append(_taken(result, is_good_B))
            self._sizes.append(compressed_bits(batch.pixels_BCHW[is_good_B]))

    def _log_prob(self, numbers: list[int], batch: Batch) -> LogProb:
        """Log-likelihoods of rows at their places in a full micro-batch; the first row fills it."""
        device = next(self.model.parameters()).device
        place_B = torch.tensor([(self.first + number) % self.micro_batch for number in numbers])
        source_M = torch.zeros(self.micro_batch, dtype=torch.int64)
        source_M[place_B] = torch.arange(len(numbers))
        full = batch.rows(source_M).to(device)
        with measured(MODEL):
            result = self.model.log_prob(
                full, rng_for(self.seed, SCORE_PURPOSE, full.index_B), self.options
            )
            return _taken(result, place_B)


def _taken(result: LogProb, which_B: Tensor) -> LogProb:
    """Some rows of an estimate, on the CPU."""
    return replace(
        result,
        nats_B=result.nats_B.cpu()[which_B],
        stderr_B=result.stderr_B.cpu()[which_B],
        columns={name: value_B.cpu()[which_B] for name, value_B in result.columns.items()},
    )
