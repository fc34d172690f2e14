"""Writes a shard of the accepted images of a unit that also has others. Encoded images are copied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from deflate import crc32

from genmod.data.format.codecs import Codec
from genmod.data.format.index import read_index
from genmod.data.format.shards import PNG_SHARD, Row, ShardFormat, write_shard
from genmod.errors import DataError
from genmod.generation.lanes import SampleUnit
from genmod.generation.synthetic import SAMPLE_SPLIT, SampleGenerator
from genmod.generation.unit import SampleReceipt
from genmod.manifest import StoredShard, read_checked

_REMEDY = "remove the folder and sample again"
_BATCH = 256
"""Images that are decoded together."""


def trim_unit(
    root: str,
    unit: SampleUnit,
    source: SampleReceipt,
    kept: Sequence[int],
    *,
    generator: SampleGenerator,
    model_digest: str,
    stored_as: ShardFormat = PNG_SHARD,
) -> SampleReceipt:
    """Write the shard.

    Args:
        root: URL of the dataset, with the shard of ``source``.
        unit: the images that were examined.
        source: receipt of the unit.
        kept: indices of the accepted images, at least one.
        generator: of the stream, for the sidecars.
        model_digest: of the model's manifest, for the sidecars.
        stored_as: how the images of the dataset are stored.

    Raises:
        DataError: the shard lacks an image, or is damaged.
    """
    assert source.shard is not None
    spec, stored = generator.model.spec, StoredShard(source.shard, root)
    blobs = _encoded_images(stored, kept)

    def rows() -> Iterator[Row]:
        codec = Codec(spec)
        for first in range(0, len(kept), _BATCH):
            part = slice(first, first + _BATCH)
            pixels_BCHW = torch.from_numpy(codec.decode(blobs[part]))
            for index, blob, pixels_CHW in zip(kept[part], blobs[part], pixels_BCHW, strict=True):
                yield replace(generator.row(index, pixels_CHW, model_digest), encoded=blob)

    name = f"{SAMPLE_SPLIT}-{next(unit.ranges()).start:012d}"
    shard, stats = write_shard(
        root, name, SAMPLE_SPLIT, spec, rows(), by_content=True, stored_as=stored_as
    )
    return SampleReceipt(
        fingerprint=source.fingerprint,
        parts=unit.intervals,
        shard=shard,
        stats=stats,
        numerics=source.numerics,
    )


def _encoded_images(shard: StoredShard, kept: Sequence[int]) -> list[bytes]:
    """The encoded images of some indices, unchanged."""
    tar = memoryview(read_checked(shard.folder, shard.entry.tar, _REMEDY))
    table = read_index(shard, ["index", "offset", "bytes", "checksum"])
    place_of = {row["index"]: row for row in table.to_pylist()}
    blobs: list[bytes] = []
    for index in kept:
        if (place := place_of.get(index)) is None:
            raise DataError(f"{shard.tar_url} lacks image {index}; {_REMEDY}")
        offset = max(place["offset"], 0)
        blob = bytes(tar[offset : offset + max(place["bytes"], 0)])
        if crc32(blob) != place["checksum"]:
            raise DataError(
                f"{shard.tar_url}: image {index} does not match its checksum; {_REMEDY}"
            )
        blobs.append(blob)
    return blobs
