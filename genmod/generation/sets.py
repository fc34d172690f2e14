"""The datasets of one stream: the first one in the folder that the recipe names, others next to it.

Each lists the images of every shard in ``shards-DIGEST.list``. So a larger request shares the shards of
smaller ones and generates only the rest, and a smaller request is a view of a larger one. The list is a
Parquet table; its name keeps it out of ``*.parquet``, the tables of rows that people read together.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, TypeAdapter

from genmod import storage
from genmod.documents import validate
from genmod.errors import ConfigError, DataError
from genmod.generation.lanes import LaneRange, Lanes
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import (
    DatasetManifest,
    FileEntry,
    RowStats,
    ShardEntry,
    check_done,
    content_name,
    read_checked,
    relative_folder,
    write_file,
)
from genmod.tables import read_table

_TABLE = re.compile(r"shards-[0-9a-f]{12}\.list")
_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("tar", "parts", "stats")]
)
"""One row per shard of a dataset, in the order of its manifest: path of the tar, intervals of its images with
those that were rejected, and statistics of its rows, both as JSON."""

_HINT = "remove the folder and run genmod sample again"
_Parts = Annotated[tuple[LaneRange, ...], Field(min_length=1)]
_PARTS: TypeAdapter[tuple[LaneRange, ...]] = TypeAdapter(_Parts)


class StreamMetadata(BaseModel):
    """Which images of which stream a synthetic dataset has; a part of its metadata."""

    stream: str = Field(default="", max_length=64)
    """Fingerprint of everything that determines an image of an index."""
    numerics: tuple[str, ...] = Field(default=(), max_length=100)
    """Numeric classes of the workers."""


@dataclass(frozen=True)
class SampleShard:
    """A shard of synthetic images."""

    entry: ShardEntry
    parts: tuple[LaneRange, ...]
    """Images of the shard, with those that were rejected."""
    stats: RowStats
    folder: str
    """URL of the folder that contains it."""

    def first_index(self, lanes: Lanes) -> int:
        """Index of the first image."""
        return lanes.index(self.parts[0].lane, self.parts[0].start)


@dataclass(frozen=True)
class SampleSet:
    """A published dataset of a stream."""

    root: str
    manifest: DatasetManifest

    def own_shards(self) -> list[SampleShard]:
        """The shards that this dataset does not share, in order. DataError for a damaged list."""
        entry = next((e for e in self.manifest.files if _TABLE.fullmatch(e.path)), None)
        if entry is None:
            return []
        where = storage.join_below(self.root, entry.path)
        data = read_checked(self.root, entry, _HINT)
        table = read_table(data, where, _SCHEMA, len(self.manifest.shards)).to_pydict()
        shards: list[SampleShard] = []
        for shard, tar, parts, stats in zip(self.manifest.shards, *table.values(), strict=True):
            if tar != shard.tar.path:
                raise DataError(
                    f"{where} lists {tar[:80]!r}, the manifest {shard.tar.path}; {_HINT}"
                )
            if not shard.folder:
                intervals = _intervals(parts, where)
                row_stats = validate(RowStats, json.loads(stats), "statistics", where, _HINT)
                shards.append(SampleShard(shard, intervals, row_stats, self.root))
        return shards


def _intervals(text: str, where: str) -> tuple[LaneRange, ...]:
    try:
        return _PARTS.validate_json(text)
    except ValueError:
        raise DataError(f"{where}: {text[:80]!r} are no intervals; {_HINT}") from None


def shards_file(root: str, shards: Sequence[SampleShard]) -> FileEntry:
    """Write the list of a dataset's shards."""
    columns = {
        "tar": [shard.entry.tar.path for shard in shards],
        "parts": [json.dumps(shard.parts) for shard in shards],
        "stats": [shard.stats.model_dump_json() for shard in shards],
    }
    sink = pa.BufferOutputStream()
    table = pa.table(columns, schema=_SCHEMA)
    pq.write_table(table, sink, compression="zstd", write_statistics=False, use_dictionary=False)
    data = sink.getvalue().to_pybytes()
    return write_file(root, f"{content_name('shards', data)}.list", data)


def list_shards(
    root: str, shards: Iterable[SampleShard]
) -> tuple[tuple[ShardEntry, ...], tuple[str, ...]]:
    """Shards as the manifest of a dataset at ``root`` lists them, and the folders that it names."""
    folders: list[str] = []
    numbers = {root: 0}
    entries: list[ShardEntry] = []
    for shard in shards:
        if shard.folder not in numbers:
            folders.append(relative_folder(root, shard.folder))
            numbers[shard.folder] = len(folders)
        entries.append(shard.entry.model_copy(update={"folder": numbers[shard.folder]}))
    return tuple(entries), tuple(folders)


@dataclass(frozen=True)
class Place:
    """Where a dataset is or will be, and the datasets of its stream that exist."""

    root: str
    done: DatasetManifest | None
    others: tuple[SampleSet, ...] = ()
    """Largest first."""


def find_place(
    first_root: str, stream: str, fingerprint: str, rows: int, snapshot: ManifestSnapshot
) -> Place:
    """The folder of a dataset.

    Args:
        first_root: URL of the folder that the recipe names.
        stream: fingerprint of the stream.
        fingerprint: of the dataset.
        rows: that are requested, for the name of a further folder.
        snapshot: the manifests that the command has read.

    Raises:
        ConfigError: the folder contains other work than of this stream.
    """
    first = snapshot.load(DatasetManifest, first_root, "dataset")
    if first is None:
        check_done(None, first_root, "dataset", fingerprint, claimed_by=stream)
        return Place(first_root, None)
    if first.fingerprint == fingerprint:
        return Place(first_root, first)
    if stream_of(first).stream != stream:
        check_done(first, first_root, "dataset", fingerprint)
    sets = stream_sets(first_root, first, snapshot)
    done = next((each for each in sets if each.manifest.fingerprint == fingerprint), None)
    if done is not None:
        return Place(done.root, done.manifest, sets)
    own_root = f"{first_root.rstrip('/')}-{rows}-{fingerprint[:8]}"
    check_done(
        snapshot.load(DatasetManifest, own_root, "dataset"),
        own_root,
        "dataset",
        fingerprint,
        claimed_by=stream,
    )
    return Place(own_root, None, sets)


def stream_sets(
    first_root: str, first: DatasetManifest, snapshot: ManifestSnapshot
) -> tuple[SampleSet, ...]:
    """The datasets of a stream: the first one and those next to it, largest first."""
    parent, name = posixpath.split(first_root.rstrip("/"))
    pattern = re.compile(re.escape(name) + r"-[0-9]+-[0-9a-f]{8}")
    sets = [SampleSet(first_root, first)]
    for other in storage.list_names(parent):
        if not pattern.fullmatch(other):
            continue
        root = storage.join(parent, other)
        manifest = snapshot.load(DatasetManifest, root, "dataset")
        if manifest is not None and stream_of(manifest).stream == stream_of(first).stream:
            sets.append(SampleSet(root, manifest))
    return tuple(sorted(sets, key=lambda each: (-each.manifest.rows("train"), each.root)))


def stream_of(manifest: DatasetManifest) -> StreamMetadata:
    """The stream of a dataset; that of a dataset that is not synthetic has no fingerprint."""
    settings: Any = manifest.metadata.get("sample")
    if not isinstance(settings, dict):
        return StreamMetadata()
    return validate(StreamMetadata, settings, "a synthetic dataset", "its manifest", _HINT)


def check_index(index: int, root: str) -> None:
    """ConfigError for an index that no image has."""
    if not 0 <= index < 1 << 60:
        raise ConfigError(f"{root}: got index {index}, expected 0 or more")
