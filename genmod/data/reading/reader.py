"""Reads rows of datasets by number: any rows, or a split in order.

The index contains the position of each image in its tar, so tars are neither parsed nor scanned. Letters:
B batch, C channels, H height, W width, N rows, K cached rows, M newly decoded rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from deflate import crc32
from numpy.typing import NDArray

from genmod.data.format import binary
from genmod.data.format.codecs import Codec
from genmod.data.reading.prefetch import Prefetch
from genmod.data.reading.row_index import Locations, RowIndex
from genmod.data.reading.tar_files import TarFiles
from genmod.errors import DataError, UnreadableRow
from genmod.interface.batch import Batch
from genmod.manifest import DatasetManifest, ImageSpec, Split, StoredShard, require

_Numbers = NDArray[np.int64]

_TRAINING_DRAW = "anew"
"""RNG purpose of the draws for training. It determines the pixels, so it must not change."""


def open_dataset(root: str) -> DatasetManifest:
    """Read the manifest of a dataset.

    Raises:
        ConfigError: there is no dataset at ``root``.
        DataError: its manifest is corrupt.
    """
    return require(DatasetManifest, root, "dataset", "shard")


class RowReader:
    """Random access to the rows of several shards, numbered from 0 in the order of the shards.

    Caches 20 bytes of index per row that was read, up to a limit, and ``decoded_bytes`` of pixels. Not
    thread-safe.
    """

    def __init__(
        self,
        spec: ImageSpec,
        shards: Sequence[StoredShard],
        decoded_bytes: int = 0,
        draw_seed: int | None = None,
        label_maps: Sequence[Sequence[int]] = (),
    ) -> None:
        """Prepare to read; no file is read yet.

        Args:
            spec: spec of the dataset.
            shards: shards of one split, in the order of their rows.
            decoded_bytes: memory for decoded pixels, so that later epochs decode less. Caches the first rows.
            draw_seed: for binary data that is drawn from greys: seed of draws that depend on ``index_N`` of
                each read. Not given: each row has one fixed draw.
            label_maps: for each shard the number to return for each of its labels; an empty map keeps them.
        """
        self.spec = spec
        self._codec = Codec(spec)
        self._split, self._draw_seed = shards[0].entry.split if shards else "none", draw_seed
        self._index = RowIndex(spec, shards)
        # Shards of one dataset share a map.
        maps = list(dict.fromkeys(map(tuple, label_maps)))
        self._maps = [np.array(part, dtype=np.int64) for part in maps]
        self._map_S = np.array([maps.index(tuple(part)) for part in label_maps], dtype=np.int64)
        self._tars = TarFiles(shards)
        cached = min(len(self), decoded_bytes // spec.dims)
        self._decoded_KCHW = np.empty((cached, *spec.shape), dtype=np.uint8)
        self._is_decoded_K = np.zeros(cached, dtype=np.bool_)

    def __len__(self) -> int:
        return self._index.rows

    def keys(self) -> list[str]:
        """Read the keys of all rows, in order."""
        return [key for number in range(len(self._tars)) for key in self._index.keys(number)]

    def find(self, row_N: _Numbers) -> Locations:
        """Look rows up in the index: location, checksum, label, index in the split."""
        return self._index.find(row_N)

    def pixels(self, row_N: _Numbers) -> NDArray[np.uint8]:
        """Read the images of rows, uint8 (N, C, H, W), in the given order. Raises as :meth:`read`."""
        return self.read(row_N).pixels_BCHW.numpy()

    def _pixels(self, row_N: _Numbers, locations: Locations) -> NDArray[np.uint8]:
        cached = len(self._is_decoded_K)
        if cached == 0:
            return self._decode(row_N, locations)
        # Rows below ``cached`` have a slot in the cache.
        has_slot_N = row_N < cached
        is_decoded_N = has_slot_N & self._is_decoded_K[np.where(has_slot_N, row_N, 0)]
        if is_decoded_N.all():
            return self._decoded_KCHW[row_N]
        # Decode the missing rows and cache those that have a slot.
        is_new_N = ~is_decoded_N
        new_MCHW = self._decode(row_N[is_new_N], locations.select(is_new_N))
        has_slot_M = has_slot_N[is_new_N]
        slots = row_N[is_new_N][has_slot_M]
        self._decoded_KCHW[slots] = new_MCHW[has_slot_M]
        self._is_decoded_K[slots] = True
        if len(new_MCHW) == len(row_N):
            return new_MCHW
        # Merge decoded and cached rows in the given order.
        image_NCHW = np.empty((len(row_N), *self.spec.shape), dtype=np.uint8)
        image_NCHW[is_new_N] = new_MCHW
        image_NCHW[is_decoded_N] = self._decoded_KCHW[row_N[is_decoded_N]]
        return image_NCHW

    def _decode(self, row_N: _Numbers, locations: Locations) -> NDArray[np.uint8]:
        blobs = self._tars.read(
            locations.shard_N.tolist(), locations.offset_N.tolist(), locations.length_N.tolist()
        )
        # Compare all checksums at once; search for the bad row only if one differs.
        checksums = locations.checksum_N.tolist()
        if list(map(crc32, blobs)) != checksums:
            is_good = [crc32(blob) == check for blob, check in zip(blobs, checksums, strict=True)]
            bad = self._member(int(row_N[is_good.index(False)]))
            raise UnreadableRow(
                f"{bad} does not match its checksum; restore or re-create the dataset"
            )
        try:
            return self._codec.decode(blobs)
        except DataError:  # decode one by one, to name the bad row
            for row, blob in zip(row_N.tolist(), blobs, strict=True):
                try:
                    self._codec.decode([blob])
                except DataError as error:
                    raise UnreadableRow(f"{self._member(row)}: {error}") from None
            raise

    def _member(self, row: int) -> str:
        """Describe a row by its tar and key."""
        (number,) = self._index.shard_of(np.array([row])).tolist()
        key = self._index.keys(number)[row - int(self._index.start_S[number])]
        return f"{self._tars.url(number)}: member {key}"

    def read(self, row_N: _Numbers, index_N: _Numbers | None = None) -> Batch:
        """Read rows as a batch, in the given order.

        Args:
            row_N: int64 row numbers in [0, len(self)).
            index_N: addresses of the rows' randomness; by default their index in the split.

        Raises:
            DataError: an index or a tar is missing or corrupt.
            UnreadableRow: a member does not match its checksum or is not an image; the message names it.
        """
        locations = self._index.find(row_N)
        labels_B = None
        if self.spec.classes:
            labels_B = torch.from_numpy(self._labels(locations))
        index_N = locations.index_N if index_N is None else np.ascontiguousarray(index_N)
        index_B = torch.from_numpy(index_N)
        pixels_BCHW = torch.from_numpy(self._pixels(row_N, locations))
        if self.spec.draw_seed is not None:
            fixed = self.spec.draw_seed, self._split, torch.from_numpy(locations.index_N)
            draw = fixed if self._draw_seed is None else (self._draw_seed, _TRAINING_DRAW, index_B)
            pixels_BCHW = binary.draw(pixels_BCHW, *draw)
        return Batch(pixels_BCHW, labels_B, index_B)

    def _labels(self, locations: Locations) -> _Numbers:
        label_N = locations.label_N.astype(np.int64)
        for number, map_K in enumerate(self._maps):
            if len(map_K):
                here_N = self._map_S[locations.shard_N] == number
                label_N[here_N] = map_K[label_N[here_N]]
        return label_N

    def batches(self, batch: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Read rows start .. stop-1 in order, each once; the last batch may be shorter."""
        stop = len(self) if stop is None else min(stop, len(self))
        for first in range(start, stop, batch):
            yield self.read(np.arange(first, min(first + batch, stop), dtype=np.int64))

    def close(self) -> None:
        """Close the files and free the cached tars."""
        self._tars.close()


def split_reader(root: str, manifest: DatasetManifest, split: Split) -> RowReader:
    """Open all rows of a split for random access."""
    return RowReader(manifest.spec, manifest.stored(root, split))


def shard_reader(manifest: DatasetManifest, shard: StoredShard) -> RowReader:
    """Open the rows of one shard for random access."""
    return RowReader(manifest.spec, [shard])


def read_rows(
    root: str, manifest: DatasetManifest, split: Split, rows: Sequence[int] | range
) -> Batch:
    """Read given rows of a split (numbers 0 .. rows-1) as one batch.

    Raises:
        DataError: a row number is out of range, or as :meth:`RowReader.read`.
    """
    reader = split_reader(root, manifest, split)
    row_N = np.asarray(rows, dtype=np.int64)
    if row_N.size and (row_N.min() < 0 or row_N.max() >= len(reader)):
        bad = row_N.min() if row_N.min() < 0 else row_N.max()
        raise DataError(f"{root}: the {split} split has rows 0 to {len(reader) - 1}, got row {bad}")
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
    """Iterate over a split in order, every row once, reading ahead in a thread.

    Args:
        root: URL of the dataset.
        manifest: manifest of the dataset.
        split: split to read.
        batch: rows per batch; the last batch may be shorter.
        start: first row.
        stop: row to stop before; the end of the split if not given.
        depth: batches to read ahead.

    Returns:
        An iterator over batches; ``index_B`` is the rows' index in the split.
    """
    return Prefetch(split_reader(root, manifest, split).batches(batch, start, stop), depth)
