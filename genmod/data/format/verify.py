"""Verifies the samples of a shard one by one, for ``genmod verify``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from zlib import crc32

import numpy as np

from genmod import storage
from genmod.data.format.codecs import Codec
from genmod.data.format.encodings import IMAGE_EXTENSIONS
from genmod.data.format.index import column_problems, key_problems
from genmod.data.format.shards import INDEX_SCHEMA, PixelHistogram
from genmod.data.format.tar import BLOCK, Member, walk
from genmod.documents import parse_json
from genmod.errors import DataError, StorageError, sanitize
from genmod.manifest import DatasetManifest, RowStats, StoredShard
from genmod.tables import read_table

_ENDED = "the tar ends here, but the index has more rows"

_MORE_BYTES = 1 << 20
"""A damaged file is read up to twice its size and this much more, to name the damaged samples."""

_MAX_PROBLEMS = 20
"""Problems reported per shard; further ones are counted."""


@dataclass(frozen=True)
class ShardCheck:
    """What was found in a shard."""

    problems: list[str]
    """One line each, with the file, the key of the sample and the member."""
    stats: RowStats | None = None
    """Statistics of its images; None if there are problems."""
    keys: Sequence[str] = ()
    indices: Sequence[int] = ()


def check_shard(manifest: DatasetManifest, shard: StoredShard) -> ShardCheck:
    """Compare a shard's tar with its index, and decode every image.

    Files that are missing, or much longer than the manifest says, are not reported here, but by
    :func:`genmod.manifest.find_problems`.
    """
    url, entry = shard.tar_url, shard.entry
    try:
        data, index = (
            storage.read_below(shard.folder, file.path, 2 * file.size_bytes + _MORE_BYTES)
            for file in (entry.tar, entry.index)
        )
    except (FileNotFoundError, DataError, StorageError):
        return ShardCheck([])
    try:
        table = read_table(index, shard.index_url, INDEX_SCHEMA)
    except DataError as error:
        return ShardCheck([str(error)])
    rows: list[dict[str, Any]] = table.to_pylist()
    # The tar itself, each row against its members, members without a row, the index itself.
    members, broken = _members(data, rows)
    problems = [f"{url}: {problem}" for problem in broken]
    codec, histogram = Codec(manifest.spec), PixelHistogram(manifest.spec)
    for row in rows:
        row_problems = _row_problems(row, data, members, codec, histogram)
        problems += [f"{url}: key {_shown(row['key'])}: {problem}" for problem in row_problems]
    keys = {row["key"] for row in rows}
    problems += [
        f"{url}: key {_shown(name.partition('.')[0])}: member {_shown(name)} is not in the index"
        for name in members
        if name.partition(".")[0] not in keys
    ]
    problems += [
        f"{shard.index_url}: {problem}" for problem in _index_problems(table, rows, manifest, shard)
    ]
    if len(problems) > _MAX_PROBLEMS:
        problems[_MAX_PROBLEMS:] = [
            f"{url}: {len(problems) - _MAX_PROBLEMS} more problems, the last: {problems[-1]}"
        ]
    stats = None
    if not problems:
        classes = manifest.spec.classes
        rows_K = np.bincount([row["label"] for row in rows], minlength=classes) if classes else ()
        next_index = max((row["index"] for row in rows), default=-1) + 1
        stats = histogram.stats(len(rows), next_index, [int(count) for count in rows_K])
    return ShardCheck(problems, stats, [row["key"] for row in rows], [row["index"] for row in rows])


def _shown(name: str) -> str:
    return sanitize(name[:100])


def _members(data: bytes, rows: list[dict[str, Any]]) -> tuple[dict[str, Member], list[str]]:
    """Members of a tar by name, and problems of the tar's structure.

    After corruption, reading resumes at the next sample in the index.
    """
    members: dict[str, Member] = {}
    problems: list[str] = []
    stream, at = BytesIO(data), 0
    starts = sorted((row["offset"] - BLOCK, row["key"]) for row in rows)
    while True:
        # Read members from ``at`` to the end, or to the first corrupt header.
        problem = _ENDED
        try:
            for member in walk(stream, "tar", begin=at):
                if member.name in members:
                    key = _shown(member.name.partition(".")[0])
                    problems.append(f"key {key}: member {_shown(member.name)} occurs twice")
                members[member.name] = member
                at = member.offset + member.size_bytes + -member.size_bytes % BLOCK
        except DataError as error:
            problem = str(error).removeprefix("tar: ")
        # Done if the index has no further rows.
        later = [start for start, _ in starts if start >= at]
        before = [key for start, key in starts if start <= at]
        sample = f"key {_shown(before[-1])}" if before else "no key"
        if not later:
            if problem is not _ENDED:
                problems.append(f"{sample}, byte {at}: {problem}")
            return members, problems
        # Report the problem and skip to the next row of the index.
        problems.append(f"{sample}, byte {at}: {problem}")
        beyond = next((start for start in later if start > at), None)
        if beyond is None or beyond >= len(data) or len(problems) > _MAX_PROBLEMS:
            return members, problems
        at = beyond


def _row_problems(
    row: dict[str, Any],
    data: bytes,
    members: dict[str, Member],
    codec: Codec,
    histogram: PixelHistogram,
) -> Iterator[str]:
    key = row["key"]
    image = next((m for ext in IMAGE_EXTENSIONS if (m := members.get(f"{key}.{ext}"))), None)
    if image is None:
        end = row["offset"] + row["bytes"]
        cut = f", it ends at byte {end} and the tar at {len(data)}" if end > len(data) else ""
        others = ", ".join(IMAGE_EXTENSIONS[1:])
        yield f"member {_shown(key)}.{IMAGE_EXTENSIONS[0]} (or {others}) is missing{cut}"
        return
    if (image.offset, image.size_bytes) != (row["offset"], row["bytes"]):
        yield (
            f"member {_shown(image.name)} is at byte {image.offset}, {image.size_bytes} long; according to "
            f"the index at byte {row['offset']}, {row['bytes']} long"
        )
        return
    blob = data[image.offset : image.offset + image.size_bytes]
    if crc32(blob) != row["checksum"]:
        yield f"member {_shown(image.name)} does not match its checksum in the index"
    else:
        try:
            histogram.add(codec.decode([blob])[0].transpose(1, 2, 0))
        except DataError as error:
            yield f"member {_shown(image.name)}: {error}"
    label = members.get(f"{key}.cls")
    text = b"" if label is None else data[label.offset : label.offset + label.size_bytes]
    if text != (b"" if row["label"] is None else str(row["label"]).encode()):
        yield f"member {_shown(key)}.cls is {text[:16]!r}, the label in the index is {row['label']}"
    if sidecar := members.get(f"{key}.json"):
        yield from _sidecar_problems(sidecar, data)


def _sidecar_problems(sidecar: Member, data: bytes) -> Iterator[str]:
    body = data[sidecar.offset : sidecar.offset + sidecar.size_bytes]
    try:
        parse_json(body, _shown(sidecar.name), "restore it")
    except DataError as error:
        yield f"member {error}"


def _index_problems(
    table: Any, rows: list[dict[str, Any]], manifest: DatasetManifest, shard: StoredShard
) -> Iterator[str]:
    """Problems of the index itself: number of rows, keys, positions, labels, indices."""
    if len(rows) != shard.rows:
        yield f"{len(rows)} rows, the manifest has {shard.rows}"
    for number, row in enumerate(rows[1:], 1):
        before = rows[number - 1]
        if row["offset"] <= before["offset"]:
            yield (
                f"row {number}, key {_shown(row['key'])}: its member precedes the member of row "
                f"{number - 1}, key {_shown(before['key'])}; rows were swapped"
            )
    yield from key_problems([row["key"] for row in rows])
    yield from column_problems(table, shard.entry.tar.size_bytes, manifest.spec)
