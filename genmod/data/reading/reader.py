"""Reads datasets: fixed rows, a whole split in order, and the training stream from any position.

The index says where each image lies in its plain tar, so nothing is parsed or scanned. Letters: B batch,
C channels, H height, W width, N rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import torch
from deflate import crc32
from numpy.typing import NDArray

from genmod import storage
from genmod.data.format import binary
from genmod.data.format.codecs import Codec
from genmod.data.order.row_order import RankSlice, RowOrder
from genmod.data.order.training_order import (
    MixturePart,
    OrderConfig,
    TrainingOrder,
    make_training_order,
)
from genmod.data.reading.prefetch import Prefetch
from genmod.data.reading.row_index import Places, RowIndex
from genmod.data.reading.tar_files import TarFiles
from genmod.errors import DataError
from genmod.interface.batch import Batch
from genmod.manifest import DatasetManifest, ImageSpec, ShardEntry, Split, require

Numbers = NDArray[np.int64]
CHUNK_ROWS = 256
"""Rows that are read and decoded together, where batches are smaller."""
ORDER_ROWS = 8192
"""Positions of the stream whose rows are computed together."""
DECODED_BYTES = 256 << 20
"""Decoded pixels that a training stream keeps at most, unless told otherwise."""


def open_dataset(root: str) -> DatasetManifest:
    """The manifest of a dataset. ConfigError if there is none, DataError if it is broken."""
    return require(DatasetManifest, root, "dataset", "shard")


class RowReader:
    """Some shards as one list of rows, numbered from 0 in the shards' order.

    Holds 20 bytes of index a row that has been asked for, within bounds, and the first ``decoded_bytes`` of
    pixels. Not to be shared by threads.
    """

    def __init__(
        self,
        root: str,
        spec: ImageSpec,
        shards: Sequence[ShardEntry],
        decoded_bytes: int = 0,
        anew: int | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
            root: URL of the dataset.
            spec: of the dataset.
            shards: of one split, in the order of their rows.
            decoded_bytes: memory for pixels of rows that have been read, so that later epochs decode less.
            anew: seed of binary pixels that each reading's ``index_N`` draws; without it a row has one draw.
        """
        self.spec = spec
        self._codec = Codec(spec)
        self._split, self._anew = shards[0].split if shards else "none", anew
        self._index = RowIndex(root, spec, shards)
        tar_urls = [storage.join(root, shard.tar.path) for shard in shards]
        self._tars = TarFiles(tar_urls, [shard.tar for shard in shards])
        kept = min(len(self), decoded_bytes // spec.dims)
        self._decoded_KCHW = np.empty((kept, *spec.shape), dtype=np.uint8)
        self._is_decoded_K = np.zeros(kept, dtype=np.bool_)

    def __len__(self) -> int:
        return self._index.rows

    def keys(self) -> list[str]:
        """The keys of all rows."""
        return [key for number in range(len(self._tars.urls)) for key in self._index.keys(number)]

    def find(self, row_N: Numbers) -> Places:
        """What the index says of rows."""
        return self._index.find(row_N)

    def pixels(self, row_N: Numbers) -> NDArray[np.uint8]:
        """Images of rows, (N, C, H, W), in the order asked for. Raises DataError as :meth:`read`."""
        return self.read(row_N).pixels_BCHW.numpy()

    def _pixels(self, row_N: Numbers, places: Places) -> NDArray[np.uint8]:
        kept = len(self._is_decoded_K)
        if kept == 0:
            return self._decode(row_N, places)
        is_kept_N = row_N < kept
        is_decoded_N = is_kept_N & self._is_decoded_K[np.where(is_kept_N, row_N, 0)]
        if is_decoded_N.all():
            return self._decoded_KCHW[row_N]
        is_new_N = ~is_decoded_N
        new_MCHW = self._decode(row_N[is_new_N], places.some(is_new_N))
        keep_M = is_kept_N[is_new_N]
        keep_row = row_N[is_new_N][keep_M]
        self._decoded_KCHW[keep_row] = new_MCHW[keep_M]
        self._is_decoded_K[keep_row] = True
        if len(new_MCHW) == len(row_N):
            return new_MCHW
        image_NCHW = np.empty((len(row_N), *self.spec.shape), dtype=np.uint8)
        image_NCHW[is_new_N] = new_MCHW
        image_NCHW[is_decoded_N] = self._decoded_KCHW[row_N[is_decoded_N]]
        return image_NCHW

    def _decode(self, row_N: Numbers, places: Places) -> NDArray[np.uint8]:
        where = places.shard_N.tolist(), places.offset_N.tolist(), places.length_N.tolist()
        blobs = self._tars.read(*where)
        checksums = places.checksum_N.tolist()
        if list(map(crc32, blobs)) != checksums:
            fits = [crc32(blob) == check for blob, check in zip(blobs, checksums, strict=True)]
            bad = self._member(int(row_N[fits.index(False)]))
            raise DataError(f"{bad} does not fit its checksum")
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
        (number,) = self._index.shard_of(np.array([row])).tolist()
        key = self._index.keys(number)[row - int(self._index.start_S[number])]
        return f"{self._tars.urls[number]}: member {key}"

    def read(self, row_N: Numbers, index_N: Numbers | None = None) -> Batch:
        """Rows as a batch, in the order asked for.

        Args:
            row_N: numbers in [0, len(self)).
            index_N: what addresses the rows' randomness; their index in the split if not given.

        Raises:
            DataError: an index or a tar is missing or broken, or a member does not fit its checksum or is no
                image; says which.
        """
        places = self._index.find(row_N)
        labels_B = None
        if self.spec.classes:
            labels_B = torch.from_numpy(places.label_N.astype(np.int64))
        index_N = places.index_N if index_N is None else np.ascontiguousarray(index_N)
        index_B, pixels_BCHW = (
            torch.from_numpy(index_N),
            torch.from_numpy(self._pixels(row_N, places)),
        )
        if self.spec.draw_seed is not None:
            once = self.spec.draw_seed, self._split, torch.from_numpy(places.index_N)
            options = once if self._anew is None else (self._anew, "anew", index_B)
            pixels_BCHW = binary.draw(pixels_BCHW, *options)
        return Batch(pixels_BCHW, labels_B, index_B)

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
        depth: int = 1,
        training_order: TrainingOrder | None = None,
        decoded_bytes: int = DECODED_BYTES,
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
            training_order: which rows in which order; a uniform one of the split if not given.
            decoded_bytes: memory of this process for pixels, which later epochs take from there.
        """
        deal = RankSlice(global_batch, rank, size)
        if training_order is None:
            parts = [MixturePart(root, manifest)]
            training_order = make_training_order(
                parts, split, OrderConfig(), seed=seed, global_batch=global_batch
            )
        self._reader = RowReader(root, manifest.spec, training_order.shards, decoded_bytes, seed)
        chunks = _stream(self._reader, training_order.order, deal, start_nimg)
        self._batches = Prefetch(chunks, depth)
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

    def __exit__(self, *_: object) -> None:
        self.close()


def _stream(
    reader: RowReader, order: RowOrder, deal: RankSlice, start: int
) -> Iterator[list[Batch]]:
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
        chunks = most  # the first batch soon, later ones cheaply
