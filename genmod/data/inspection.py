"""Looks at the samples of a shard one by one: for ``genmod verify``."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from zlib import crc32

from genmod import storage
from genmod.data.codecs import Codec
from genmod.data.shards import read_table
from genmod.data.tars import Member, walk
from genmod.errors import DataError
from genmod.manifest import DatasetManifest, ShardEntry


def shard_faults(root: str, manifest: DatasetManifest, shard: ShardEntry) -> list[str]:
    """Each sample of which the tar and the index tell different things, or whose image is none.

    What is missing altogether is not told here: :func:`genmod.manifest.faults` does.
    """
    url = storage.join(root, shard.tar.path)
    index_url = storage.join(root, shard.index.path)
    try:
        data, index = storage.read_bytes(url), storage.read_bytes(index_url)
    except FileNotFoundError:
        return []
    try:
        rows = read_table(index, index_url).to_pylist()
        members = {member.name: member for member in walk(BytesIO(data), url)}
    except DataError as error:
        return [str(error)]
    found = [
        f"{url}: {fault}" for row in rows for fault in _row_faults(row, data, members, manifest)
    ]
    if len(rows) != shard.rows:
        found.append(f"{index_url}: {len(rows)} rows, the manifest says {shard.rows}")
    keys = {row["key"] for row in rows}
    for name in members:
        if name.partition(".")[0] not in keys:
            found.append(f"{url}: member {name} is not in the index")
    return found


def _row_faults(
    row: dict[str, object], data: bytes, members: dict[str, Member], manifest: DatasetManifest
) -> Iterator[str]:
    key = row["key"]
    image = next((m for ext in ("png", "jpg") if (m := members.get(f"{key}.{ext}"))), None)
    if image is None:
        yield f"member {key}.png is missing"
        return
    if (image.offset, image.size_bytes) != (row["offset"], row["bytes"]):
        yield f"member {image.name} is not where the index says"
        return
    blob = data[image.offset : image.offset + image.size_bytes]
    if crc32(blob) != row["checksum"]:
        yield f"member {image.name} does not fit its checksum in the index"
    else:
        try:
            Codec(manifest.spec).decode([blob])
        except DataError as error:
            yield f"member {image.name}: {error}"
    label = members.get(f"{key}.cls")
    text = b"" if label is None else data[label.offset : label.offset + label.size_bytes]
    if text != (b"" if row["label"] is None else str(row["label"]).encode()):
        yield f"member {key}.cls is {text[:16]!r}, the index says {row['label']}"
