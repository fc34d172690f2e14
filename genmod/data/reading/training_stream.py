"""The training stream: endless batches of shuffled rows, from any position.

Letters: K batches of a chunk, B batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from genmod.data.order.row_order import RankSlice, RowOrder
from genmod.data.order.training_order import (
    MixturePart,
    OrderConfig,
    TrainingOrder,
    make_training_order,
)
from genmod.data.reading.prefetch import Prefetch
from genmod.data.reading.reader import RowReader
from genmod.interface.batch import Batch
from genmod.manifest import DatasetManifest, Split

_CHUNK_ROWS = 256
"""Rows that are read and decoded together where batches are smaller."""

_ORDER_ROWS = 8192
"""Stream positions whose rows are computed together."""

_DECODED_BYTES = 256 << 20
"""Default limit of the decoded pixels that a training stream caches."""


class TrainingStream:
    """One rank's batches of the endless training stream, read and decoded in a separate thread.

    Of global batch [p, p + B), rank r of w gets rows r B/w .. (r+1) B/w. ``index_B`` is their position in the
    stream, so a batch depends only on (dataset, split, seed, position).
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
        decoded_bytes: int = _DECODED_BYTES,
    ) -> None:
        """Start reading at a position; the cost does not depend on ``start_nimg``.

        Args:
            root: URL of the dataset.
            manifest: manifest of the dataset.
            split: split to read, e.g. ``train``.
            global_batch: images of a step over all ranks, a multiple of ``size``.
            rank: rank of this process.
            size: number of processes.
            seed: seed of the run.
            start_nimg: position of the first global batch.
            depth: number of chunks (of at least 256 images) to read ahead.
            training_order: shards and row order; by default the split's rows in uniform order.
            decoded_bytes: memory for decoded pixels in this process, which later epochs reuse.
        """
        rank_slice = RankSlice(global_batch, rank, size)
        if training_order is None:
            parts = [MixturePart(root, manifest)]
            training_order = make_training_order(
                parts, split, OrderConfig(), seed=seed, global_batch=global_batch
            )
        self._reader = RowReader(
            manifest.spec,
            training_order.shards,
            decoded_bytes,
            seed,
            label_maps=training_order.label_maps,
        )
        chunks = read_chunks(self._reader, training_order.order, rank_slice, start_nimg)
        self._batches = Prefetch(chunks, depth)
        self._chunk: list[Batch] = []

    @property
    def waited_s(self) -> float:
        """Seconds that the caller has waited for batches so far."""
        return self._batches.waited_s

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if not self._chunk:
            self._chunk = next(self._batches)[::-1]
        return self._chunk.pop()

    def close(self) -> None:
        """Stop reading ahead and close the files."""
        self._chunk = []
        self._batches.close()
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_chunks(
    reader: RowReader, order: RowOrder, rank_slice: RankSlice, start: int
) -> Iterator[list[Batch]]:
    """Read a rank's batches from stream position ``start`` on, endlessly, as lists of some batches each."""
    local = rank_slice.local_batch
    per_chunk = max(1, _CHUNK_ROWS // local)
    chunks, max_chunks = 1, max(1, _ORDER_ROWS // (local * per_chunk))
    while True:
        # Compute the rows of several chunks together, which is cheap.
        position_KB = rank_slice.positions(start, per_chunk * chunks)
        row_KB = order.rows_at(position_KB.reshape(-1)).reshape(position_KB.shape)
        # Read each chunk and split it into batches.
        for first in range(0, len(position_KB), per_chunk):
            part = slice(first, first + per_chunk)
            chunk = reader.read(row_KB[part].reshape(-1), position_KB[part].reshape(-1))
            yield [chunk.rows(slice(k, k + local)) for k in range(0, len(chunk), local)]
        start += len(position_KB) * rank_slice.global_batch
        chunks = max_chunks  # a single chunk at first, so that training starts soon
