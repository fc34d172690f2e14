"""Shards of a dataset: a plain WebDataset tar each, with an index and row statistics.

A sample consists of the members KEY.png (or jpg, webp, npy), KEY.cls if it has a label, and KEY.json if it
has a sidecar, in this order. The same rows yield the same bytes in any process. Letters: C channels,
H height, W width, K classes, N samples, M members, U unique labels, V pixel values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deflate import crc32
from numpy.typing import NDArray

from genmod.config import Config
from genmod.data.format.encodings import Encoding, ImageEncoder
from genmod.data.format.image_table import TABLE_SUFFIX, ImageTable
from genmod.data.format.keys import KEY_PATTERN, MAX_KEY_LENGTH
from genmod.data.format.tar import Members, build_tar
from genmod.errors import DataError
from genmod.manifest import (
    FileEntry,
    ImageSpec,
    RowStats,
    ShardEntry,
    Split,
    content_name,
    write_file,
)
from genmod.units import LEVELS

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("checksum", pa.uint32(), nullable=False),
        pa.field("name", pa.string()),
    ]
)
"""One row per sample. ``index``: permanent number, unique in the split, with gaps for rejected inputs.
``offset`` and ``bytes``: position and size of the image in the tar. ``checksum``: CRC-32 of the image.
``name``: the sample's name in the source, where it differs from the key."""

QUARANTINE = "quarantine.parquet"
"""File below a dataset's root that lists the rejected inputs with reasons."""

QUARANTINE_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("key", "name", "reason")]
)
"""One row per rejected input."""


@dataclass(frozen=True)
class Row:
    """A sample to write into a shard."""

    key: str
    index: int
    """Unique in its split; addresses the randomness of the sample's scores."""
    image_HWC: NDArray[np.uint8]
    label: int | None = None
    sidecar: Mapping[str, Any] | None = None
    """JSON values for KEY.json."""
    name: str | None = None
    """Name in the source, if it differs from the key."""
    encoded: bytes | None = None
    """The encoded image, whose pixels are ``image_HWC``; None if it is still to be encoded."""


@dataclass(frozen=True)
class ShardFormat:
    """How a shard stores its images."""

    encoding: Encoding = Encoding()
    table: ImageTable | None = None
    """Set if the images are also written as Parquet, next to the tar."""


PNG_SHARD = ShardFormat()
"""PNG in tars, nothing else."""


class PixelHistogram:
    """Counts of pixel values per channel, updated 64 images at a time."""

    def __init__(self, spec: ImageSpec) -> None:
        self._images_NHWC = np.empty((64, spec.height, spec.width, spec.channels), dtype=np.uint8)
        self._buffered = 0
        self._counts_CV = np.zeros((spec.channels, LEVELS), dtype=np.int64)
        value_V = np.arange(LEVELS, dtype=np.int64)
        is_drawn = spec.draw_seed is not None  # then E[pixel^2] = 255 E[pixel]
        self._square_V = value_V * (LEVELS - 1) if is_drawn else value_V**2

    def add(self, image_HWC: NDArray[np.uint8]) -> None:
        """Count the pixels of an image of the spec's shape."""
        self._images_NHWC[self._buffered] = image_HWC
        self._buffered += 1
        if self._buffered == len(self._images_NHWC):
            self._flush()

    def _flush(self) -> None:
        for c in range(len(self._counts_CV)):
            buffer_NHW = self._images_NHWC[: self._buffered, :, :, c]
            self._counts_CV[c] += np.bincount(buffer_NHW.reshape(-1), minlength=LEVELS)
        self._buffered = 0

    def stats(self, rows: int, next_index: int, rows_K: Sequence[int]) -> RowStats:
        """The statistics of all rows so far, given what is no pixel."""
        self._flush()
        value_V = np.arange(LEVELS, dtype=np.int64)
        return RowStats(
            rows=rows,
            next_index=next_index,
            pixels=int(self._counts_CV[0].sum()),
            pixel_sum_C=tuple((self._counts_CV @ value_V).tolist()),
            pixel_square_sum_C=tuple((self._counts_CV @ self._square_V).tolist()),
            rows_K=tuple(rows_K),
        )


def write_shard(
    root: str,
    name: str,
    split: Split,
    spec: ImageSpec,
    rows: Iterable[Row],
    *,
    by_content: bool = False,
    stored_as: ShardFormat = PNG_SHARD,
) -> tuple[ShardEntry, RowStats]:
    """Encode rows and write NAME.tar and NAME.idx.parquet below ``root``. Same rows, same bytes.

    Args:
        root: URL of the dataset.
        name: name of the shard, e.g. ``train-000000``.
        split: split of the rows.
        spec: spec of the dataset: the shape of every image, and with ``spec.classes`` > 0 every row has a
            label below it.
        rows: at least one row; keys are unique.
        by_content: whether the files' names end with a digest of the tar, so that writers whose bytes differ
            write different files.
        stored_as: how the images are stored. Statistics are of the pixels that readers get.

    Raises:
        DataError: invalid key, image shape or label; or no rows.
    """
    encoder, histogram = ImageEncoder(spec, stored_as.encoding), PixelHistogram(spec)
    keys, indices, images = list[str](), list[int](), list[bytes]()
    labels, names, sidecars = list[int](), list[str | None](), list[bytes | None]()
    for row in rows:
        _check_row(row, spec)
        keys.append(row.key)
        indices.append(row.index)
        image, pixels_HWC = row.encoded, row.image_HWC
        if image is None:
            image, pixels_HWC = encoder.stored(pixels_HWC)
        images.append(image)
        names.append(row.name)
        sidecar = None if row.sidecar is None else json.dumps(row.sidecar, sort_keys=True).encode()
        sidecars.append(sidecar)
        if row.label is not None:
            labels.append(row.label)
        histogram.add(pixels_HWC)
    samples = EncodedRows(keys, indices, images, labels if spec.classes else None, names, sidecars)
    suffix = stored_as.encoding.suffix
    entry = pack_shard(
        root, name, split, samples, suffix, by_content=by_content, table=stored_as.table
    )
    rows_K = np.bincount(labels, minlength=spec.classes).tolist() if spec.classes else ()
    return entry, histogram.stats(len(keys), max(indices) + 1, rows_K)


class EncodedRows(NamedTuple):
    """Samples with encoded images, column by column."""

    keys: Sequence[str]
    indices: Sequence[int]
    """The ``index`` of each sample."""
    images: Sequence[bytes]
    labels: Sequence[int] | None = None
    """A label for every sample, or None."""
    names: Sequence[str | None] | None = None
    sidecars: Sequence[bytes | None] = ()


def pack_shard(
    root: str,
    name: str,
    split: Split,
    samples: EncodedRows,
    suffix: str = ".png",
    *,
    by_content: bool = False,
    table: ImageTable | None = None,
) -> ShardEntry:
    """Write NAME.tar and NAME.idx.parquet of encoded images, unchanged.

    Args:
        root: URL of the dataset.
        name: name of the shard.
        split: split of the samples.
        samples: at least one, with unique keys.
        suffix: extension of the images.
        by_content: as in :func:`write_shard`.
        table: of the dataset, to write NAME.images.parquet too.

    Raises:
        DataError: no samples, or duplicate keys.
    """
    keys, indices, images, labels, names, sidecars = samples
    rows = len(keys)
    if not rows or len(set(keys)) != rows:
        raise DataError(f"{root}/{name}: got {rows} rows, expected at least one, with unique keys")
    members = [Members(suffix, images)]
    if labels is not None:
        label_U, inverse_N = np.unique(np.array(labels), return_inverse=True)
        members.append(Members(".cls", label_U.astype(np.bytes_)[inverse_N]))
    if any(sidecar is not None for sidecar in sidecars):
        members.append(Members(".json", sidecars))
    tar, offset_NM = build_tar(keys, members)
    if by_content:
        name = content_name(name, tar)
    columns = {
        "key": keys,
        "index": indices,
        "offset": offset_NM[:, 0],
        "bytes": np.fromiter(map(len, images), np.int64, rows),
        "label": pa.nulls(rows) if labels is None else labels,
        "checksum": np.fromiter(map(crc32, images), np.uint32, rows),
        "name": pa.nulls(rows) if names is None else names,
    }
    image_table = None
    if table is not None:
        data = table.encoded(keys, indices, images, labels, suffix)
        image_table = write_file(root, f"{name}{TABLE_SUFFIX}", data)
    return ShardEntry(
        split=split,
        rows=rows,
        tar=write_file(root, f"{name}.tar", tar),
        index=write_file(root, f"{name}.idx.parquet", _table_bytes(columns, INDEX_SCHEMA)),
        table=image_table,
    )


def _check_row(row: Row, spec: ImageSpec) -> None:
    if not KEY_PATTERN.match(row.key):
        raise DataError(f"key {row.key!r}: expected 1 to {MAX_KEY_LENGTH} of A-Z a-z 0-9 _ -")
    shape = (spec.height, spec.width, spec.channels)
    if row.image_HWC.shape != shape or row.image_HWC.dtype != np.uint8:
        got = f"{row.image_HWC.dtype} {row.image_HWC.shape}"
        raise DataError(f"{row.key}: image is {got}, expected uint8 {shape}")
    is_valid = spec.classes == 0 if row.label is None else 0 <= row.label < spec.classes
    if not is_valid:
        raise DataError(f"{row.key}: label {row.label}, the dataset has {spec.classes} classes")


def _table_bytes(columns: Mapping[str, Any], schema: Any) -> bytes:
    """Encode a small table as Parquet; the same values yield the same bytes."""
    sink = pa.BufferOutputStream()
    table = pa.table(dict(columns), schema=schema)
    pq.write_table(table, sink, compression="zstd", write_statistics=False, use_dictionary=False)
    return sink.getvalue().to_pybytes()


class ShardReceipt(Config):
    """Result of writing one shard. Written create-if-absent, so the first of two writers wins."""

    fingerprint: str
    """Fingerprint of the shard's dataset."""
    shard: ShardEntry | None
    """None if every row was rejected."""
    metadata: RowStats | None
    rejected: tuple[tuple[str, str, str], ...] = ()
    """(key, name, reason) of each rejected row."""


def quarantine_file(root: str, rejected: Sequence[Sequence[str]]) -> FileEntry:
    """Write quarantine.parquet: (key, name, reason) of every rejected input."""
    names = QUARANTINE_SCHEMA.names
    columns = {name: [row[i] for row in rejected] for i, name in enumerate(names)}
    schema = pa.schema([(name, pa.string()) for name in names])
    return write_file(root, QUARANTINE, _table_bytes(columns, schema))
