"""Looks at the samples of a shard one by one: for ``genmod verify``."""

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

ENDED = "the tar ends here, but the index goes on"

MAX_FAULTS = 20
"""Lines about one shard; the others are counted."""


def shard_problems(root: str, manifest: DatasetManifest, shard: ShardEntry) -> list[str]:
    """Each sample of which the tar and the index tell different things, or whose image is none.

    Every line names the file, the key of the sample and the member. What is missing altogether is not told
    here: :func:`genmod.manifest.faults` does.
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
    members, broken = _members(data, rows)
    found = [f"{url}: {fault}" for fault in broken]
    codec = Codec(manifest.spec)
    for row in rows:
        found += [f"{url}: key {row['key']}: {f}" for f in _row_faults(row, data, members, codec)]
    keys = {row["key"] for row in rows}
    found += [
        f"{url}: key {name.partition('.')[0]}: member {name} is not in the index"
        for name in members
        if name.partition(".")[0] not in keys
    ]
    found += [f"{index_url}: {fault}" for fault in _index_faults(rows, shard)]
    if len(found) > MAX_FAULTS:
        found[MAX_FAULTS:] = [
            f"{url}: {len(found) - MAX_FAULTS} more faults, the last: {found[-1]}"
        ]
    return found


def _index_rows(index: bytes, where: str) -> list[dict[str, Any]]:
    table = read_table(index, where)
    for field in INDEX_SCHEMA:
        if (
            field.name not in table.column_names
            or table.schema.field(field.name).type != field.type
        ):
            raise DataError(f"{where}: has no column {field.name} of {field.type}")
        if table[field.name].null_count and not field.nullable:
            raise DataError(f"{where}: a row has no {field.name}")
    return table.to_pylist()


def _members(data: bytes, rows: list[dict[str, Any]]) -> tuple[dict[str, Member], list[str]]:
    """The members that can be found, and what is wrong between them.

    Behind damage the walk goes on at the next sample that the index knows.
    """
    members: dict[str, Member] = {}
    found: list[str] = []
    stream, at = BytesIO(data), 0
    while True:
        fault = ENDED
        try:
            for member in walk(stream, "tar", begin=at):
                if member.name in members:
                    key = member.name.partition(".")[0]
                    found.append(f"key {key}: member {member.name} is there twice")
                members[member.name] = member
                at = member.offset + member.size_bytes + -member.size_bytes % BLOCK
        except DataError as error:
            fault = str(error).removeprefix("tar: ")
        later = [row for row in rows if row["offset"] - BLOCK >= at]
        if not later:
            if fault is not ENDED:
                found.append(f"{_key_at(rows, at)}, byte {at}: {fault}")
            return members, found
        found.append(f"{_key_at(rows, at)}, byte {at}: {fault}")
        beyond = [row["offset"] - BLOCK for row in later if row["offset"] - BLOCK > at]
        if not beyond or min(beyond) >= len(data) or len(found) > MAX_FAULTS:
            return members, found
        at = min(beyond)


def _key_at(rows: list[dict[str, Any]], at: int) -> str:
    """Which sample has the header at a byte."""
    before = [row for row in rows if row["offset"] - BLOCK <= at]
    return f"key {max(before, key=lambda row: row['offset'])['key']}" if before else "no key"


def _row_faults(
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
            f"member {image.name} is at byte {image.offset}, {image.size_bytes} long, not where the index "
            f"says ({row['offset']}, {row['bytes']})"
        )
        return
    blob = data[image.offset : image.offset + image.size_bytes]
    if crc32(blob) != row["checksum"]:
        yield f"member {image.name} does not fit its checksum in the index"
    else:
        try:
            codec.decode([blob])
        except DataError as error:
            yield f"member {image.name}: {error}"
    label = members.get(f"{key}.cls")
    text = b"" if label is None else data[label.offset : label.offset + label.size_bytes]
    if text != (b"" if row["label"] is None else str(row["label"]).encode()):
        yield f"member {key}.cls is {text[:16]!r}, the index says {row['label']}"


def _index_faults(rows: list[dict[str, Any]], shard: ShardEntry) -> Iterator[str]:
    """What is wrong with the index by itself."""
    if len(rows) != shard.rows:
        yield f"{len(rows)} rows, the manifest says {shard.rows}"
    for number, (before, row) in enumerate(pairwise(rows)):
        if row["offset"] <= before["offset"]:
            yield (
                f"row {number + 1}, key {row['key']}: its member lies before that of the row before, "
                f"key {before['key']}; rows were swapped"
            )
