"""Verifies the samples of a shard one by one, for ``genmod verify``."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from typing import Any
from zlib import crc32

from genmod import storage
from genmod.data.format.codecs import Codec
from genmod.data.format.shards import INDEX_SCHEMA, read_table
from genmod.data.format.tar import BLOCK, Member, walk
from genmod.errors import DataError
from genmod.manifest import DatasetManifest, ShardEntry

_ENDED = "the tar ends here, but the index has more rows"

_MAX_PROBLEMS = 20
"""Problems reported per shard; further ones are counted."""


def shard_problems(root: str, manifest: DatasetManifest, shard: ShardEntry) -> list[str]:
    """Compare a shard's tar with its index, and decode every image.

    Returns:
        One line per problem, with the file, the key of the sample and the member. Missing files are not
        reported here, but by :func:`genmod.manifest.find_problems`.
    """
    url = storage.join(root, shard.tar.path)
    index_url = storage.join(root, shard.index.path)
    try:
        data, index = storage.read_bytes(url), storage.read_bytes(index_url)
    except FileNotFoundError:
        return []
    try:
        rows = _index_rows(index, index_url)
    except DataError as error:
        return [str(error)]
    # The tar itself, each row against its members, members without a row, the order of the index.
    members, broken = _members(data, rows)
    problems = [f"{url}: {problem}" for problem in broken]
    codec = Codec(manifest.spec)
    for row in rows:
        row_problems = _row_problems(row, data, members, codec)
        problems += [f"{url}: key {row['key']}: {problem}" for problem in row_problems]
    keys = {row["key"] for row in rows}
    problems += [
        f"{url}: key {name.partition('.')[0]}: member {name} is not in the index"
        for name in members
        if name.partition(".")[0] not in keys
    ]
    problems += [f"{index_url}: {problem}" for problem in _index_problems(rows, shard)]
    if len(problems) > _MAX_PROBLEMS:
        problems[_MAX_PROBLEMS:] = [
            f"{url}: {len(problems) - _MAX_PROBLEMS} more problems, the last: {problems[-1]}"
        ]
    return problems


def _index_rows(index: bytes, where: str) -> list[dict[str, Any]]:
    table = read_table(index, where)
    for field in INDEX_SCHEMA:
        if (
            field.name not in table.column_names
            or table.schema.field(field.name).type != field.type
        ):
            raise DataError(f"{where}: has no column {field.name} of type {field.type}")
        if table[field.name].null_count and not field.nullable:
            raise DataError(f"{where}: a row has no {field.name}")
    return table.to_pylist()


def _members(data: bytes, rows: list[dict[str, Any]]) -> tuple[dict[str, Member], list[str]]:
    """Members of a tar by name, and problems of the tar's structure.

    After corruption, reading resumes at the next sample in the index.
    """
    members: dict[str, Member] = {}
    problems: list[str] = []
    stream, at = BytesIO(data), 0
    while True:
        # Read members from ``at`` to the end, or to the first corrupt header.
        problem = _ENDED
        try:
            for member in walk(stream, "tar", begin=at):
                if member.name in members:
                    key = member.name.partition(".")[0]
                    problems.append(f"key {key}: member {member.name} occurs twice")
                members[member.name] = member
                at = member.offset + member.size_bytes + -member.size_bytes % BLOCK
        except DataError as error:
            problem = str(error).removeprefix("tar: ")
        # Done if the index has no further rows.
        later = [row for row in rows if row["offset"] - BLOCK >= at]
        if not later:
            if problem is not _ENDED:
                problems.append(f"{_key_at(rows, at)}, byte {at}: {problem}")
            return members, problems
        # Report the problem and skip to the next row of the index.
        problems.append(f"{_key_at(rows, at)}, byte {at}: {problem}")
        beyond = [row["offset"] - BLOCK for row in later if row["offset"] - BLOCK > at]
        if not beyond or min(beyond) >= len(data) or len(problems) > _MAX_PROBLEMS:
            return members, problems
        at = min(beyond)


def _key_at(rows: list[dict[str, Any]], at: int) -> str:
    """Name the sample that a byte of the tar belongs to."""
    before = [row for row in rows if row["offset"] - BLOCK <= at]
    return f"key {max(before, key=lambda row: row['offset'])['key']}" if before else "no key"


def _row_problems(
    row: dict[str, Any], data: bytes, members: dict[str, Member], codec: Codec
) -> Iterator[str]:
    key = row["key"]
    image = next((m for ext in ("png", "jpg") if (m := members.get(f"{key}.{ext}"))), None)
    if image is None:
        end = row["offset"] + row["bytes"]
        cut = f", it ends at byte {end} and the tar at {len(data)}" if end > len(data) else ""
        yield f"member {key}.png is missing{cut}"
        return
    if (image.offset, image.size_bytes) != (row["offset"], row["bytes"]):
        yield (
            f"member {image.name} is at byte {image.offset}, {image.size_bytes} long; according to the index "
            f"at byte {row['offset']}, {row['bytes']} long"
        )
        return
    blob = data[image.offset : image.offset + image.size_bytes]
    if crc32(blob) != row["checksum"]:
        yield f"member {image.name} does not match its checksum in the index"
    else:
        try:
            codec.decode([blob])
        except DataError as error:
            yield f"member {image.name}: {error}"
    label = members.get(f"{key}.cls")
    text = b"" if label is None else data[label.offset : label.offset + label.size_bytes]
    if text != (b"" if row["label"] is None else str(row["label"]).encode()):
        yield f"member {key}.cls is {text[:16]!r}, the label in the index is {row['label']}"


def _index_problems(rows: list[dict[str, Any]], shard: ShardEntry) -> Iterator[str]:
    """Problems of the index itself: number and order of the rows."""
    if len(rows) != shard.rows:
        yield f"{len(rows)} rows, the manifest has {shard.rows}"
    for number, (before, row) in enumerate(pairwise(rows)):
        if row["offset"] <= before["offset"]:
            yield (
                f"row {number + 1}, key {row['key']}: its member precedes the member of row {number}, "
                f"key {before['key']}; rows were swapped"
            )
