"""Reads datasets: fixed rows, a whole split in order, and the training stream from any position.

The index says where each image lies in its plain tar, so nothing is parsed or scanned. Letters: B batch,
C channels, H height, W width, N rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self, cast
from zlib import crc32

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from genmod import storage
from genmod.data.arrange import Arrangement, OrderConfig, Part, arrange
from genmod.data.batch import Batch
from genmod.data.codecs import Codec
from genmod.data.order import Deal, RowOrder
from genmod.data.prefetch import Prefetch
from genmod.data.shards import INDEX_SCHEMA, read_table
from genmod.data.tarfiles import TarFiles
from genmod.errors import DataError
from genmod.manifest import DatasetManifest, ImageSpec, ShardEntry, Split, require

CHUNK_ROWS = 256
"""Rows that are read and decoded together, where batches are smaller."""

ORDER_ROWS = 8192
"""Positions of the stream whose rows are computed together."""


def open_dataset(root: str) -> DatasetManifest:
    """The manifest of a dataset. ConfigError if there is none, DataError if it is broken."""
    return require(DatasetManifest, root, "dataset", "shard")


class RowReader:
    """Some shards as one list of rows, numbered from 0 in the shards' order.

    Holds 24 bytes of index per row. Not to be shared by threads.
    """

    def __init__(self, root: str, spec: ImageSpec, shards: Sequence[ShardEntry]) -> None:
        self.spec = spec
        self._codec = Codec(spec)
        self._index_urls = [storage.join(root, shard.index.path) for shard in shards]
        tar_urls = [storage.join(root, shard.tar.path) for shard in shards]
        self._tars = TarFiles(tar_urls, [shard.tar for shard in shards])
        self._start_S = np.cumsum([0, *(shard.rows for shard in shards)])
        tables = [
            self._load(url, shard) for url, shard in zip(self._index_urls, shards, strict=True)
        ]
        table = pa.concat_tables(tables) if tables else INDEX_SCHEMA.empty_table()
        self.index_N: NDArray[np.int64] = table["index"].to_numpy()
        self.label_N: NDArray[np.int32] = table["label"].fill_null(-1).to_numpy()
        """-1 where there is none."""
        self._offset_N = table["offset"].to_numpy()
        self._length_N = table["bytes"].to_numpy()
        self._check_N = table["checksum"].to_numpy()

    def __len__(self) -> int:
        return int(self._start_S[-1])

    def _load(self, url: str, shard: ShardEntry) -> Any:
        """The index of a shard, a pyarrow table, as far as it is needed here."""
        try:
            data = storage.read_bytes(url)
        except FileNotFoundError:
            raise DataError(f"{url} is not there, but the dataset's manifest names it") from None
        table = read_table(data, url, ("index", "offset", "bytes", "checksum", "label"))
        if table.num_rows != shard.rows:
            raise DataError(f"{url}: {table.num_rows} rows, the manifest says {shard.rows}")
        offset_N, length_N = table["offset"].to_numpy(), table["bytes"].to_numpy()
        label_N = table["label"].fill_null(-1).to_numpy()
        room_N = shard.tar.size_bytes - offset_N
        if np.any(offset_N < 0) or np.any(length_N < 0) or np.any(length_N > room_N):
            raise DataError(f"{url}: points outside its tar")
        classes = self.spec.classes
        if np.any(label_N >= classes) or (classes and np.any(label_N < 0)):
            raise DataError(f"{url}: a label is not one of the dataset's {classes} classes")
        return table

    def keys(self) -> list[str]:
        """The keys of all rows."""
        return [key for number in range(len(self._index_urls)) for key in self._keys(number)]

    def _keys(self, number: int) -> list[str]:
        url = self._index_urls[number]
        return cast(list[str], read_table(storage.read_bytes(url), url, ["key"])["key"].to_pylist())

    def pixels(self, row_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images of rows, (N, C, H, W), in the order asked for.

        Raises:
            DataError: a member does not fit its checksum or is no image; says which.
        """
        shard_N = np.searchsorted(self._start_S, row_N, side="right") - 1
        blobs: list[bytes] = [b""] * len(row_N)
        for number in np.unique(shard_N).tolist():
            at_N = np.flatnonzero(shard_N == number)
            rows = row_N[at_N]
            offsets, lengths = self._offset_N[rows].tolist(), self._length_N[rows].tolist()
            pieces = self._tars.read(number, offsets, lengths)
            checks = self._check_N[rows].tolist()
            for at, row, piece, check in zip(
                at_N.tolist(), rows.tolist(), pieces, checks, strict=True
            ):
                if crc32(piece) != check:
                    raise DataError(f"{self._member(row)} does not fit its checksum")
                blobs[at] = piece
        try:
            return self._codec.decode(blobs)
        except DataError:
            for row, blob in zip(row_N.tolist(), blobs, strict=True):
                try:
                    self._codec.decode([blob])
                except DataError as error:
                    raise DataError(f"{self._member(row)}: {error}") from None
            raise

    def _member(self, row: int) -> str:
        """Tar and key of a row, for people."""
        number = int(np.searchsorted(self._start_S, row, side="right")) - 1
        key = self._keys(number)[row - int(self._start_S[number])]
        return f"{self._tars.urls[number]}: member {key}"

    def read(self, row_N: NDArray[np.int64], index_N: NDArray[np.int64] | None = None) -> Batch:
        """Rows as a batch, in the order asked for.

        Args:
            row_N: numbers in [0, len(self)).
            index_N: what addresses the rows' randomness; their index in the split if not given.
        """
        labels_B = None
        if self.spec.classes:
            labels_B = torch.from_numpy(self.label_N[row_N].astype(np.int64))
        index_N = self.index_N[row_N] if index_N is None else index_N
        pixels_BCHW = torch.from_numpy(self.pixels(row_N))
        return Batch(pixels_BCHW, labels_B, torch.from_numpy(np.ascontiguousarray(index_N)))

    def batches(self, batch: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Rows start .. stop-1 in order, each once; the last batch may be shorter."""
        stop = len(self) if stop is None else min(stop, len(self))
        for first in range(start, stop, batch):
            yield self.read(np.arange(first, min(first + batch, stop), dtype=np.int64))

    def close(self) -> None:
        """Close the files."""
        self._tars.close()


def split_reader(root: str, manifest: DatasetManifest, split: Split) -> RowReader:
    """All rows of a split."""
    return RowReader(root, manifest.spec, manifest.of_split(split))


def shard_reader(root: str, manifest: DatasetManifest, shard: ShardEntry) -> RowReader:
    """The rows of one shard."""
    return RowReader(root, manifest.spec, [shard])


def read_rows(
    root: str, manifest: DatasetManifest, split: Split, rows: Sequence[int] | range
) -> Batch:
    """Fixed rows of a split (0 .. rows-1) as one batch."""
    reader = split_reader(root, manifest, split)
    row_N = np.asarray(rows, dtype=np.int64)
    if row_N.size and (row_N.min() < 0 or row_N.max() >= len(reader)):
        raise DataError(
            f"{root}: the {split} split has rows 0 to {len(reader) - 1}, not {row_N.max()}"
        )
    batch = reader.read(row_N)
    reader.close()
    return batch


def iter_split(
    root: str,
    manifest: DatasetManifest,
    split: Split,
    batch: int,
    *,
    start: int = 0,
    stop: int | None = None,
    depth: int = 4,
) -> Prefetch[Batch]:
    """A split in order, every row once, read ahead in a thread. ``index_B`` is the index in the split."""
    return Prefetch(split_reader(root, manifest, split).batches(batch, start, stop), depth)


class TrainingStream:
    """One rank's batches of the endless training stream, read and decoded in a thread of its own.

    At global batch [p, p + B) rank r of w gets rows r B/w .. (r+1) B/w, and ``index_B`` is their position in
    the stream, so what is read depends on nothing but (dataset, split, seed, position).
    """

    def __init__(
        self,
        root: str,
        manifest: DatasetManifest,
        split: Split,
        *,
        global_batch: int,
        rank: int = 0,
        size: int = 1,
        seed: int = 0,
        start_nimg: int = 0,
        depth: int = 2,
        arrangement: Arrangement | None = None,
    ) -> None:
        """Position the stream; costs the same for any ``start_nimg``.

        Args:
            root: URL of the dataset.
            manifest: its manifest.
            split: e.g. ``train``.
            global_batch: images of a step over all ranks, a multiple of ``size``.
            rank: of this process.
            size: number of processes.
            seed: of the run.
            start_nimg: position of the first global batch.
            depth: chunks of at least 256 images that are read ahead.
            arrangement: which rows in which order; a uniform one of the split if not given.
        """
        deal = Deal(global_batch, rank, size)
        if arrangement is None:
            parts = [Part(root, manifest)]
            arrangement = arrange(parts, split, OrderConfig(), seed=seed, global_batch=global_batch)
        self._reader = RowReader(root, manifest.spec, arrangement.shards)
        self._batches = Prefetch(_stream(self._reader, arrangement.order, deal, start_nimg), depth)
        self._ready: list[Batch] = []

    @property
    def waited_s(self) -> float:
        """Wall time that training has waited for data so far."""
        return self._batches.waited_s

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if not self._ready:
            self._ready = next(self._batches)[::-1]
        return self._ready.pop()

    def close(self) -> None:
        """Stop reading ahead and close the files."""
        self._ready = []
        self._batches.close()
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _stream(reader: RowReader, order: RowOrder, deal: Deal, start: int) -> Iterator[list[Batch]]:
    """Chunks of batches, for ever."""
    local = deal.local_batch
    per_chunk = max(1, CHUNK_ROWS // local)
    chunks, most = 1, max(1, ORDER_ROWS // (local * per_chunk))
    while True:
        position_KB = deal.positions(start, per_chunk * chunks)
        row_KB = order.rows_at(position_KB.reshape(-1)).reshape(position_KB.shape)
        for first in range(0, len(position_KB), per_chunk):
            some = slice(first, first + per_chunk)
            chunk = reader.read(row_KB[some].reshape(-1), position_KB[some].reshape(-1))
            yield [chunk.rows(slice(k, k + local)) for k in range(0, len(chunk), local)]
        start += len(position_KB) * deal.global_batch
        chunks = min(2 * chunks, most)  # the first batch soon, later ones cheaply
