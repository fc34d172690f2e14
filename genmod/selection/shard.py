"""Writes the kept rows of one shard as a shard of their own: encoded bytes are copied, none is encoded again.

Letters: N rows of the shard, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deflate import crc32
from pydantic import Field

from genmod.budget import BUDGET
from genmod.config import Config
from genmod.data.format.codecs import Codec
from genmod.data.format.encodings import IMAGE_EXTENSIONS
from genmod.data.format.image_table import TABLE_SUFFIX, ImageTable
from genmod.data.format.index import HINT, read_index
from genmod.data.format.shards import EncodedRows, PixelHistogram, pack_shard
from genmod.data.format.tar import walk
from genmod.errors import DataError, sanitize
from genmod.manifest import (
    DatasetManifest,
    FileEntry,
    ImageSpec,
    RowStats,
    ShardEntry,
    StoredShard,
    read_checked,
    write_file,
)
from genmod.selection.rows import RowChoice
from genmod.tables import numbers

DROPPED_SUFFIX = ".dropped.parquet"
"""End of the name of a list of dropped rows."""

_DROPPED_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""One row per dropped row: ``score``: it does not meet the condition; ``no score``."""


class SelectReceipt(Config):
    """What was written of one shard."""

    fingerprint: str = Field(max_length=64)
    """Of the selected dataset."""
    shard: ShardEntry | None
    """None if no row is kept."""
    lost: RowStats
    """Statistics of the rows that were dropped."""
    dropped: FileEntry | None
    """The list of the dropped rows; None if there are none."""
    rows: int = Field(ge=0, le=BUDGET.shard_rows)
    """Rows of the shard that were read."""


def write_selected(
    root: str, choice: RowChoice, dataset: DatasetManifest, fingerprint: str
) -> SelectReceipt:
    """Write the kept rows of a shard below ``root``, and the list of the others. Same rows, same bytes.

    Args:
        root: URL of the selected dataset.
        choice: which rows are kept.
        dataset: the dataset that has the shard.
        fingerprint: of the selected dataset.

    Raises:
        DataError: the tar is damaged, or an image cannot be decoded.
    """
    shard, split, spec = choice.shard, choice.shard.entry.split, dataset.spec
    name = f"{split}-{choice.number:06d}"
    tar = read_checked(shard.folder, shard.entry.tar, HINT)
    if choice.kept == shard.rows:
        return _copied(root, name, shard, tar, fingerprint)
    table = read_index(shard)
    is_kept = choice.is_kept_N.tolist()
    rows = _Members(tar, shard)
    keys: list[str] = table["key"].to_pylist()
    kept = [key for key, is_in in zip(keys, is_kept, strict=True) if is_in]
    entry = None
    if kept:
        here = pa.array(choice.is_kept_N)
        part = table.filter(here)
        suffix = rows.suffix(kept)
        samples = EncodedRows(
            kept,
            part["index"].to_pylist(),
            [rows.body(key, suffix) for key in kept],
            part["label"].to_pylist() if spec.classes else None,
            part["name"].to_pylist(),
            [rows.optional(key, "json") for key in kept],
        )
        tables = ImageTable(spec.classes, dataset.class_names) if shard.entry.table else None
        entry = pack_shard(root, name, split, samples, f".{suffix}", table=tables)
    lost_table = table.filter(pa.array(~choice.is_kept_N))
    lost_keys: list[str] = lost_table["key"].to_pylist()
    blobs = [rows.body(key, rows.suffix([key])) for key in lost_keys]
    _check_sums(shard, lost_keys, blobs, numbers(lost_table["checksum"]).tolist())
    label_N = numbers(lost_table["label"])
    rows_K = np.bincount(label_N, minlength=spec.classes).tolist() if spec.classes else ()
    scored_N = choice.is_scored_N[~choice.is_kept_N]
    return SelectReceipt(
        fingerprint=fingerprint,
        shard=entry,
        lost=_statistics(spec, blobs, rows_K),
        dropped=_dropped_file(root, name, lost_table, scored_N.tolist()),
        rows=shard.rows,
    )


def _copied(
    root: str, name: str, shard: StoredShard, tar: bytes, fingerprint: str
) -> SelectReceipt:
    """A whole shard, whose folder the new dataset cannot name."""
    index = read_checked(shard.folder, shard.entry.index, HINT)
    table = shard.entry.table
    if table is not None:
        data = read_checked(shard.folder, table, HINT)
        table = write_file(root, f"{name}{TABLE_SUFFIX}", data)
    entry = ShardEntry(
        split=shard.entry.split,
        rows=shard.rows,
        tar=write_file(root, f"{name}.tar", tar),
        index=write_file(root, f"{name}.idx.parquet", index),
        table=table,
    )
    return SelectReceipt(
        fingerprint=fingerprint, shard=entry, lost=RowStats(), dropped=None, rows=shard.rows
    )


class _Members:
    """The members of a tar by key and extension."""

    def __init__(self, tar: bytes, shard: StoredShard) -> None:
        self._tar, self._url = memoryview(tar), shard.tar_url
        self._at: dict[tuple[str, str], tuple[int, int]] = {}
        for member in walk(BytesIO(tar), self._url):
            key, _, extension = member.name.partition(".")
            if extension not in (*IMAGE_EXTENSIONS, "cls", "json"):
                raise DataError(
                    f"{self._url}: member {sanitize(member.name[:100])} is none that genmod writes; {HINT}"
                )
            self._at[key, extension] = member.offset, member.size_bytes

    def suffix(self, keys: Sequence[str]) -> str:
        """The one extension of the images of samples. DataError if they have several."""
        found = {each for each in IMAGE_EXTENSIONS if any((key, each) in self._at for key in keys)}
        if len(found) != 1:
            kinds = " and ".join(sorted(found)) or "none"
            raise DataError(
                f"{self._url}: the images of a shard are of one kind, found {kinds}; {HINT}"
            )
        return found.pop()

    def body(self, key: str, extension: str) -> bytes:
        """The bytes of a member. DataError if the tar lacks it."""
        if (body := self.optional(key, extension)) is None:
            shown = sanitize(f"{key}.{extension}"[:100])
            raise DataError(f"{self._url}: member {shown} is missing; {HINT}")
        return body

    def optional(self, key: str, extension: str) -> bytes | None:
        """The bytes of a member; None if the tar lacks it."""
        if (place := self._at.get((key, extension))) is None:
            return None
        offset, size_bytes = place
        return bytes(self._tar[offset : offset + size_bytes])


def _check_sums(
    shard: StoredShard, keys: Sequence[str], blobs: Sequence[bytes], checksums: Sequence[int]
) -> None:
    for key, blob, checksum in zip(keys, blobs, checksums, strict=True):
        if crc32(blob) != checksum:
            raise DataError(
                f"{shard.tar_url}: key {sanitize(key[:80])} does not match its checksum; {HINT}"
            )


def _statistics(spec: ImageSpec, blobs: Sequence[bytes], rows_K: Sequence[int]) -> RowStats:
    """Statistics of images; the numbers of their rows do not count here."""
    codec, histogram = Codec(spec), PixelHistogram(spec)
    if not blobs:
        return RowStats()
    for first in range(0, len(blobs), 256):
        for image_CHW in codec.decode(blobs[first : first + 256]):
            histogram.add(image_CHW.transpose(1, 2, 0))
    return histogram.stats(len(blobs), 0, rows_K)


def _dropped_file(root: str, name: str, table: Any, is_scored: Sequence[bool]) -> FileEntry | None:
    if not table.num_rows:
        return None
    reasons = ["score" if scored else "no score" for scored in is_scored]
    columns = {"key": table["key"], "index": table["index"], "reason": pa.array(reasons)}
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns, schema=_DROPPED_SCHEMA), sink,
        compression="zstd", write_statistics=False, use_dictionary=False,
    )  # fmt: skip
    return write_file(root, f"{name}{DROPPED_SUFFIX}", sink.getvalue().to_pybytes())
