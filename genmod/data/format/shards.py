"""One shard: a plain WebDataset tar, its index, and the facts that travel with it.

A sample is the members KEY.png, KEY.cls if it has a label, KEY.json if it has a sidecar, in this order. The
same rows give the same bytes in any process. Letters: C channels, H height, W width, K classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deflate import crc32
from numpy.typing import NDArray

from genmod.config import Config
from genmod.data.format.codecs import Codec
from genmod.data.format.keys import KEY_PATTERN, MAX_KEY_LENGTH
from genmod.data.format.tar import Members, tar_of
from genmod.errors import DataError
from genmod.manifest import FileEntry, ImageSpec, ShardEntry, Split, write_file
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
"""One row per sample: ``index`` is unique in its split for ever, with gaps where inputs were refused;
``offset`` and ``bytes`` are of the image in the tar, ``checksum`` is its CRC-32; ``name`` is what the source
calls the sample, where that is not the key."""

QUARANTINE = "quarantine.parquet"
"""The file below a dataset's root that says which inputs were refused."""


@dataclass(frozen=True)
class Row:
    """A sample that goes into a shard."""

    key: str
    index: int
    """Unique in its split: what addresses its randomness when it is scored."""
    image_HWC: NDArray[np.uint8]
    label: int | None = None
    sidecar: Mapping[str, Any] | None = None
    """JSON values for KEY.json."""
    name: str | None = None
    """What the source calls it, if that is not the key."""


class RowStats(Config):
    """What is known of some rows of a split. Pixels are 0..255 and sums are exact, so facts add up."""

    rows: int = 0
    next_index: int = 0
    """Above every ``index`` in use."""
    pixels: int = 0
    """Of each channel."""
    pixel_sum_C: tuple[int, ...] = ()
    pixel_square_sum_C: tuple[int, ...] = ()
    rows_K: tuple[int, ...] = ()
    """By class."""

    def __add__(self, other: RowStats) -> RowStats:
        """Of both together."""
        return RowStats(
            rows=self.rows + other.rows,
            next_index=max(self.next_index, other.next_index),
            pixels=self.pixels + other.pixels,
            pixel_sum_C=_add(self.pixel_sum_C, other.pixel_sum_C),
            pixel_square_sum_C=_add(self.pixel_square_sum_C, other.pixel_square_sum_C),
            rows_K=_add(self.rows_K, other.rows_K),
        )


def _add(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip_longest(a, b, fillvalue=0))


class _Histogram:
    """Counts of pixel values by channel, taken some images at a time."""

    def __init__(self, spec: ImageSpec) -> None:
        self._images_NHWC = np.empty((64, spec.height, spec.width, spec.channels), dtype=np.uint8)
        self._held = 0
        self._counts_CV = np.zeros((spec.channels, LEVELS), dtype=np.int64)
        value_V = np.arange(LEVELS, dtype=np.int64)
        is_drawn = spec.draw_seed is not None  # then E[pixel^2] = 255 E[pixel]
        self._square_V = value_V * (LEVELS - 1) if is_drawn else value_V**2

    def add(self, image_HWC: NDArray[np.uint8]) -> None:
        self._images_NHWC[self._held] = image_HWC
        self._held += 1
        if self._held == len(self._images_NHWC):
            self._flush()

    def _flush(self) -> None:
        for c in range(len(self._counts_CV)):
            held = self._images_NHWC[: self._held, :, :, c]
            self._counts_CV[c] += np.bincount(held.reshape(-1), minlength=LEVELS)
        self._held = 0

    def metadata(self, rows: int, next_index: int, rows_K: Sequence[int]) -> RowStats:
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
    root: str, name: str, split: Split, spec: ImageSpec, rows: Iterable[Row]
) -> tuple[ShardEntry, RowStats]:
    """Write NAME.tar and NAME.idx.parquet below ``root``. The same rows give the same bytes.

    Args:
        root: URL of the dataset.
        name: of the shard, e.g. ``train-000000``.
        split: that the rows belong to.
        spec: of the dataset; each image has its shape, and each row a label below ``spec.classes`` if
            that is not 0.
        rows: at least one, keys unique.

    Raises:
        DataError: a row's key, shape or label is not allowed.
    """
    codec, histogram = Codec(spec), _Histogram(spec)
    keys, numbers, images = list[str](), list[int](), list[bytes]()
    labels, names, sidecars = list[int](), list[str | None](), list[bytes | None]()
    for row in rows:
        _check_row(row, spec)
        keys.append(row.key)
        numbers.append(row.index)
        images.append(codec.encode(row.image_HWC))
        names.append(row.name)
        told = None if row.sidecar is None else json.dumps(row.sidecar, sort_keys=True).encode()
        sidecars.append(told)
        if row.label is not None:
            labels.append(row.label)
        histogram.add(row.image_HWC)
    samples = EncodedRows(keys, numbers, images, labels if spec.classes else None, names, sidecars)
    entry = pack_shard(root, name, split, samples)
    rows_K = np.bincount(labels, minlength=spec.classes).tolist() if spec.classes else ()
    return entry, histogram.metadata(len(keys), max(numbers) + 1, rows_K)


class EncodedRows(NamedTuple):
    """Samples whose images are files already, by column."""

    keys: Sequence[str]
    numbers: Sequence[int]
    """Their ``index``."""
    images: Sequence[bytes]
    labels: Sequence[int] | None = None
    """Of all or of none."""
    names: Sequence[str | None] | None = None
    sidecars: Sequence[bytes | None] = ()


def pack_shard(
    root: str, name: str, split: Split, samples: EncodedRows, suffix: str = ".png"
) -> ShardEntry:
    """Write NAME.tar and NAME.idx.parquet of images as they are, ``suffix`` says what they are.

    Raises:
        DataError: no samples, or two with one key.
    """
    keys, numbers, images, labels, names, sidecars = samples
    rows = len(keys)
    if not rows or len(set(keys)) != rows:
        raise DataError(f"{root}/{name}: {rows} rows, wanted some, with unique keys")
    members = [Members(suffix, images)]
    if labels is not None:
        label_U, at_N = np.unique(np.array(labels), return_inverse=True)
        members.append(Members(".cls", label_U.astype(np.bytes_)[at_N]))
    if any(sidecar is not None for sidecar in sidecars):
        members.append(Members(".json", sidecars))
    whole, offset_NM = tar_of(keys, members)
    table = {
        "key": keys,
        "index": numbers,
        "offset": offset_NM[:, 0],
        "bytes": np.fromiter(map(len, images), np.int64, rows),
        "label": pa.nulls(rows) if labels is None else labels,
        "checksum": np.fromiter(map(crc32, images), np.uint32, rows),
        "name": pa.nulls(rows) if names is None else names,
    }
    return ShardEntry(
        split=split,
        rows=rows,
        tar=write_file(root, f"{name}.tar", whole),
        index=write_file(root, f"{name}.idx.parquet", table_bytes(table, INDEX_SCHEMA)),
    )


def _check_row(row: Row, spec: ImageSpec) -> None:
    if not KEY_PATTERN.match(row.key):
        raise DataError(f"key {row.key!r}: wanted 1 to {MAX_KEY_LENGTH} of A-Z a-z 0-9 _ -")
    wanted = (spec.height, spec.width, spec.channels)
    if row.image_HWC.shape != wanted or row.image_HWC.dtype != np.uint8:
        got = f"{row.image_HWC.dtype} {row.image_HWC.shape}"
        raise DataError(f"{row.key}: image is {got}, wanted uint8 {wanted}")
    fits = spec.classes == 0 if row.label is None else 0 <= row.label < spec.classes
    if not fits:
        raise DataError(f"{row.key}: label {row.label}, the dataset has {spec.classes} classes")


def table_bytes(columns: Mapping[str, Any], schema: Any) -> bytes:
    """A small Parquet file with a pyarrow schema; the same bytes for the same values."""
    sink = pa.BufferOutputStream()
    table = pa.table(dict(columns), schema=schema)
    pq.write_table(table, sink, compression="zstd", write_statistics=False, use_dictionary=False)
    return sink.getvalue().to_pybytes()


def read_table(data: bytes, where: str, columns: Sequence[str] | None = None) -> Any:
    """A pyarrow table of some columns of a Parquet file. DataError if it is none."""
    try:
        wanted = list(columns) if columns else None
        table = pq.ParquetFile(pa.BufferReader(data)).read(wanted, use_threads=False)
        return table.select(wanted) if wanted else table  # a column that is not there: KeyError
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = str(error).splitlines()[0][:160]
        raise DataError(f"{where} is not a Parquet file that can be read ({reason})") from None


class ShardReceipt(Config):
    """What the maker of one shard says of it; create-if-absent, so one maker wins."""

    fingerprint: str
    """Of the dataset that the shard is for."""
    shard: ShardEntry | None
    """None if every row was refused."""
    metadata: RowStats | None
    rejected: tuple[tuple[str, str, str], ...] = ()
    """(key, name, reason)."""


def dataset_metadata(made: Mapping[Split, RowStats]) -> dict[str, Any]:
    """What a dataset's manifest tells of its rows and pixels.

    Args:
        made: for each split that has rows, the sum of its shards' facts.

    Returns:
        ``splits``: the facts of each split as JSON; ``stats``: ``mean`` and ``std`` of each channel over the
        train split in network units, [-1, 1] (absent if that split is empty).
    """
    metadata: dict[str, Any] = {
        "splits": {split: made[split].model_dump(mode="json") for split in made}
    }
    if "train" in made:
        metadata["stats"] = _network_stats(made["train"])
    return metadata


def _network_stats(metadata: RowStats) -> dict[str, list[float]]:
    """Integers until the last division; a pixel p is x = 2 (p + 1/2) / 256 - 1, as in genmod.units."""
    scale, count = 2.0 / LEVELS, metadata.pixels
    both = zip(metadata.pixel_sum_C, metadata.pixel_square_sum_C, strict=True)
    std = [math.sqrt(squares * count - total * total) / count * scale for total, squares in both]
    mean = [(total / count + 0.5) * scale - 1.0 for total in metadata.pixel_sum_C]
    return {"mean": mean, "std": std}


def quarantine_file(root: str, rejected: Sequence[Sequence[str]]) -> FileEntry:
    """Write quarantine.parquet: (key, name, reason) of every input that was refused."""
    names = ("key", "name", "reason")
    columns = {name: [row[i] for row in rejected] for i, name in enumerate(names)}
    schema = pa.schema([(name, pa.string()) for name in names])
    return write_file(root, QUARANTINE, table_bytes(columns, schema))
