"""Which rows of a dataset a selection keeps: its shards one after the other, with the scores of their rows.

Needs the memory of one shard's index and one table of scores. Letters: N rows of a shard, M rows of a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from genmod import storage
from genmod.config import fingerprint
from genmod.data.format.index import HINT, column_problems, read_index
from genmod.errors import ConfigError, DataError, did_you_mean, sanitize
from genmod.manifest import (
    SPLITS,
    DatasetManifest,
    Split,
    StoredShard,
)
from genmod.selection.class_numbers import check_class_number
from genmod.selection.expression import ColumnKind, Condition, Mask, check_columns
from genmod.selection.split_scores import SCORE_AGAIN, SplitScores
from genmod.tables import numbers

Unscored = Literal["refuse", "keep", "drop"]
"""What becomes of rows without a score."""


@dataclass(frozen=True)
class RowChoice:
    """Which rows of one shard are kept."""

    number: int
    """Of the shard in its split."""
    shard: StoredShard
    is_kept_N: Mask
    is_scored_N: Mask

    @property
    def kept(self) -> int:
        """Number of rows that are kept."""
        return int(self.is_kept_N.sum())

    @property
    def unscored(self) -> int:
        """Number of rows without a score."""
        return len(self.is_scored_N) - int(self.is_scored_N.sum())


@dataclass(frozen=True)
class RowSelection:
    """A dataset, the scores of its rows, and the condition that kept rows meet."""

    data_root: str
    dataset: DatasetManifest
    scores: tuple[SplitScores, ...]
    condition: Condition
    unscored: Unscored

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the selected dataset: of all digests, and of the condition in its normal form."""
        digests = sorted((part.split, part.manifest.digest) for part in self.scores)
        return fingerprint(
            "select", self.dataset.digest, digests, str(self.condition), self.unscored
        )

    def check(self) -> None:
        """Check that the scores are of this dataset, and that the condition fits their columns.

        Raises:
            ConfigError: they are not, two are of one split or of different kinds, or a split has no scores.
            DataError: a table is damaged.
        """
        for part in self.scores:
            self._check_parent(part)
        splits = [part.split for part in self.scores]
        if len(set(splits)) != len(splits):
            raise ConfigError(
                f"select: two of the scores are of the split {max(splits, key=splits.count)}; give one of "
                "each split"
            )
        first = self.scores[0]
        for part in self.scores[1:]:
            models = [each.manifest.parents.get("model") for each in (first, part)]
            if part.label != first.label or models[0] != models[1]:
                raise ConfigError(
                    f"select: the scores {first.root} and {part.root} are of different models or "
                    "estimators, and cannot be compared; score both splits with one model"
                )
        kinds = self.kinds(first.table(0).schema.names)
        check_columns(self.condition, kinds)
        self._check_classes()
        missing = {
            split: rows
            for split in SPLITS
            if (rows := self.dataset.rows(split)) and split not in splits
        }
        for part in self.scores:
            if lacking := self.dataset.rows(part.split) - part.scored.n:
                missing[part.split] = lacking
        if missing and self.unscored == "refuse":
            counts = ", ".join(f"{rows:,} of {split}" for split, rows in missing.items())
            if lost := sum(part.scored.quarantined for part in self.scores):
                counts += f" ({lost:,} of them could not be scored)"
            raise ConfigError(
                f"select: rows without a score: {counts}; score them and give --scores once for each "
                "split, or say what becomes of them: --unscored keep, or --unscored drop"
            )

    def _check_parent(self, part: SplitScores) -> None:
        scored = part.manifest.parents.get("dataset", "none")
        if scored != self.dataset.digest:
            raise ConfigError(
                f"select: {part.root} are scores of dataset {sanitize(scored[:12])}, but {self.data_root} "
                f"is dataset {self.dataset.digest[:12]}; score this one (score.data, score.split)"
            )
        if part.scored.n > self.dataset.rows(part.split):
            raise DataError(f"{part.root}: more scores than rows; {SCORE_AGAIN}")

    def kinds(self, score_columns: Sequence[str]) -> dict[str, ColumnKind]:
        """The columns that a condition may name, and what they hold."""
        kinds: dict[str, ColumnKind] = {name: "number" for name in score_columns}
        kinds |= {"key": "text", "index": "number"}
        del kinds["label"]
        if self.dataset.spec.classes:
            kinds["label"] = "number"
        if self.dataset.class_names:
            kinds["class"] = "text"
        return kinds

    def _check_classes(self) -> None:
        """Raise ConfigError for a class that the dataset does not have, and a number that is unclear."""
        for each in self.condition.comparisons():
            if each.column == "label" and not isinstance(each.value, str):
                check_class_number(each, each.value, self.dataset.class_names)
            if each.column == "class" and each.value not in self.dataset.class_names:
                hint = sanitize(did_you_mean(str(each.value), self.dataset.class_names))[:300]
                shown = sanitize(str(each.value)[:80])
                raise ConfigError(f"condition: no class {shown!r}; {hint}")

    def choices(self) -> Iterator[RowChoice]:
        """The choice of every shard, in the order of the manifest.

        Raises:
            DataError: an index or a table is damaged, or the scores are of other rows.
        """
        streams = {part.split: _ScoreStream(part) for part in self.scores}
        count: dict[Split, int] = dict.fromkeys(SPLITS, 0)
        for shard in self.dataset.stored(self.data_root):
            split = shard.entry.split
            yield self._choice(count[split], shard, streams.get(split))
            count[split] += 1
        for stream in streams.values():
            stream.check_end()

    def _choice(self, number: int, shard: StoredShard, stream: _ScoreStream | None) -> RowChoice:
        keep_others = np.full(shard.rows, self.unscored == "keep")
        none = np.zeros(shard.rows, dtype=np.bool_)
        if stream is None:
            return RowChoice(number, shard, keep_others, none)
        table = read_index(shard)
        for problem in column_problems(table, shard.entry.tar.size_bytes, self.dataset.spec):
            raise DataError(f"{shard.index_url}: {problem}; {HINT}")
        names = {each.column for each in self.condition.comparisons()}
        index_N, keys = numbers(table["index"]), table["key"].to_pylist()
        scored = stream.take(index_N, keys, names)
        columns: dict[str, NDArray[Any]] = dict(scored.columns)
        columns |= {"index": index_N, "label": numbers(table["label"])}
        columns["key"] = np.array(keys, dtype=object)
        if "class" in names:
            class_names = np.array(self.dataset.class_names, dtype=object)
            columns["class"] = class_names[columns["label"]]
        met_N = self.condition.mask(columns)
        kept_N = np.where(scored.is_scored_N, met_N, keep_others)
        return RowChoice(number, shard, kept_N, scored.is_scored_N)


@dataclass(frozen=True)
class _ShardScores:
    """Columns of the scores of a shard's rows, (N,) each; NaN where a row has none."""

    columns: Mapping[str, NDArray[Any]]
    is_scored_N: Mask


class _ScoreStream:
    """The scores of a split, table after table: those of a shard follow those of the shard before."""

    def __init__(self, scores: SplitScores) -> None:
        self._scores = scores
        self._table: Any = None
        self._number, self._row = 0, 0

    def take(self, index_N: NDArray[Any], keys: Sequence[str], names: set[str]) -> _ShardScores:
        """The next rows, as far as they are rows of this shard."""
        rows = len(index_N)
        is_scored_N = np.zeros(rows, dtype=np.bool_)
        own = names - {"key", "index", "label", "class"}
        columns = {name: np.full(rows, np.nan) for name in own}
        order_N = np.argsort(index_N)
        while (table := self._current()) is not None:
            index_M: NDArray[Any] = numbers(table["index"])[self._row :]
            at_M = np.searchsorted(index_N, index_M, sorter=order_N).clip(max=rows - 1)
            at_M = order_N[at_M]
            is_here_M = index_N[at_M] == index_M
            count = len(index_M) if is_here_M.all() else int(is_here_M.argmin())
            if not count:
                break
            here = slice(self._row, self._row + count)
            scored_keys: list[str] = table["key"][here].to_pylist()
            if [keys[at] for at in at_M[:count].tolist()] != scored_keys:
                raise self._mismatch(f"row {self._row}")
            if is_scored_N[at_M[:count]].any() or len(set(at_M[:count].tolist())) < count:
                raise self._mismatch("a row that occurs twice")
            is_scored_N[at_M[:count]] = True
            for name, value_N in columns.items():
                if name not in table.schema.names:
                    raise self._mismatch(f"no column {name}")
                value_N[at_M[:count]] = numbers(table[name])[here]
            self._row += count
        return _ShardScores(columns, is_scored_N)

    def _current(self) -> Any:
        """The table with the next row; None at the end."""
        while self._table is None or self._row >= self._table.num_rows:
            if self._number >= len(self._scores.entries):
                return None
            self._table, self._row = self._scores.table(self._number), 0
            self._number += 1
        return self._table

    def check_end(self) -> None:
        """Raise DataError if rows are left, which no shard has."""
        if self._current() is not None:
            raise self._mismatch(f"row {self._row}")

    def _mismatch(self, problem: str) -> DataError:
        entry = self._scores.entries[self._number - 1]
        url = storage.join_below(self._scores.root, entry.path)
        return DataError(f"{url}: {problem}: not scores of this dataset's rows; {SCORE_AGAIN}")
