"""One row of a dataset or of scores: where it is, and which other datasets have it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from genmod import storage
from genmod.data.format.index import read_index
from genmod.errors import ConfigError, sanitize
from genmod.lineage.nodes import LineageNode
from genmod.manifest import FileEntry, StoredShard, read_checked
from genmod.scoring.table import read_parquet

_MOST_VALUES = 40
"""Columns of a score that are shown."""


@dataclass(frozen=True)
class RowQuery:
    """How a person names a row."""

    key: str | None = None
    index: int | None = None
    """Number in the split."""
    split: str | None = None
    """The split of the index, if several have it."""

    def __str__(self) -> str:
        text = f"key {self.key}" if self.key is not None else f"index {self.index}"
        return sanitize(text[:200]) + (f" of the split {self.split}" if self.split else "")

    def position(self, table: Any) -> int | None:
        """Number of the row in a table with columns ``key`` and ``index``; None if it is not there."""
        column, value = ("index", self.index) if self.key is None else ("key", self.key)
        found = table[column].index(value).as_py()
        return None if found < 0 else int(found)


@dataclass(frozen=True)
class LineageRow:
    """A row of a dataset."""

    split: str
    key: str
    index: int
    label: int | None
    name: str | None
    """In the source, where it is not the key."""
    tar: str
    """URL of the tar."""
    tar_sha256: str

    def as_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {
            "split": self.split,
            "key": self.key,
            "index": self.index,
            "label": self.label,
            "name": self.name or self.key,
            "tar": self.tar,
        }

    @property
    def text(self) -> str:
        """The row in words."""
        label = "" if self.label is None else f", label {self.label}"
        name = "" if self.name is None else f", {sanitize(self.name[:200])} in the source"
        return f"row {sanitize(self.key[:80])} of {self.split}, index {self.index}{label}{name}"


def find_row(node: LineageNode, query: RowQuery) -> LineageRow:
    """A row of a dataset. Reads the indexes of its shards up to it.

    Raises:
        ConfigError: it has no such row, or several splits have the index.
        DataError: an index is damaged.
    """
    found = list(_rows(node, query))
    if not found:
        raise ConfigError(
            f"lineage: {node.url} has no row with {query}; check the key or the index"
        )
    if len(found) > 1:
        splits = ", ".join(row.split for row in found)
        raise ConfigError(
            f"lineage: the splits {splits} of {node.url} have a row with {query}; name one with --split"
        )
    return found[0]


def _rows(node: LineageNode, query: RowQuery) -> Iterator[LineageRow]:
    """The row in each split, at most one of each; a key is in one split only."""
    assert node.dataset is not None
    done: set[str] = set()
    for shard in node.dataset.stored(node.url):
        split = shard.entry.split
        if split in done or query.split not in (None, split):
            continue
        if (row := _row_of_shard(shard, query)) is not None:
            yield row
            if query.key is not None:
                return
            done.add(split)


def _row_of_shard(shard: StoredShard, query: RowQuery) -> LineageRow | None:
    table = read_index(shard, ["key", "index", "label", "name"])
    at = query.position(table)
    if at is None:
        return None
    (values,) = table.slice(at, 1).to_pylist()
    return LineageRow(
        split=shard.entry.split,
        key=values["key"],
        index=values["index"],
        label=values["label"],
        name=values["name"],
        tar=shard.tar_url,
        tar_sha256=shard.entry.tar.sha256,
    )


class RowPlaces:
    """Which datasets have a row. Reads indexes only where no tar is shared that is known to have it."""

    def __init__(self, row: LineageRow) -> None:
        self._row = row
        self._tars = {row.tar_sha256}
        self._found: dict[str, LineageRow | None] = {}

    def row_in(self, node: LineageNode) -> LineageRow | None:
        """The row as a dataset has it; None if it lacks it."""
        if node.digest not in self._found:
            self._found[node.digest] = self._look(node)
        return self._found[node.digest]

    def _look(self, node: LineageNode) -> LineageRow | None:
        assert node.dataset is not None
        shards = node.dataset.stored(node.url)
        query = RowQuery(key=self._row.key)
        likely = [shard for shard in shards if shard.entry.tar.sha256 in self._tars]
        for shard in likely or shards:
            if (row := _row_of_shard(shard, query)) is not None:
                self._tars.add(row.tar_sha256)
                return row
        return None


@dataclass(frozen=True)
class ScoredRow:
    """A row of score tables."""

    key: str
    index: int
    table: str
    """URL of the table."""
    values: dict[str, float | int | None]

    def as_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {"key": self.key, "index": self.index, "table": self.table, "values": self.values}

    @property
    def text(self) -> str:
        """The row in words."""
        numbers = ", ".join(
            f"{sanitize(name[:80])} {value:.6g}"
            for name, value in self.values.items()
            if value is not None
        )
        return f"score of row {sanitize(self.key[:80])}, index {self.index}: {numbers}"


def find_score(node: LineageNode, query: RowQuery) -> ScoredRow:
    """A row of scores. ConfigError if they have none; DataError if a table is damaged."""
    if query.split not in (None, node.split):
        raise ConfigError(f"lineage: {node.url} has scores of {node.split}, not of {query.split}")
    for entry in node.tables:
        table = _score_table(node.url, entry)
        at = query.position(table)
        if at is not None:
            (values,) = table.slice(at, 1).to_pylist()
            key, index = values.pop("key"), values.pop("index")
            shown = dict(list(values.items())[:_MOST_VALUES])
            return ScoredRow(key, index, storage.join_below(node.url, entry.path), shown)
    raise ConfigError(f"lineage: {node.url} has no score of {query}; check the key or the index")


def _score_table(root: str, entry: FileEntry) -> Any:
    data = read_checked(root, entry, "run genmod verify to find all damaged files")
    return read_parquet(data, storage.join_below(root, entry.path))[0]
