"""One work unit of a sampling job: generates its images, writes a tar, and describes both in a receipt.

With filters the tar has the images that are accepted so far, and a table of candidates says of every image
why it was rejected. Letters: B images of a micro-batch, T tables of signatures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from genmod.config import Config
from genmod.data.format.encodings import ImageEncoder
from genmod.data.format.shards import PNG_SHARD, Row, ShardFormat, write_shard
from genmod.data.reading.prefetch import Prefetch
from genmod.generation.filters import TABLES, Filters, signatures
from genmod.generation.lanes import LaneRange, SampleUnit
from genmod.generation.synthetic import SAMPLE_SPLIT, MicroBatch, SampleGenerator
from genmod.manifest import FileEntry, RowStats, ShardEntry, content_name, write_file
from genmod.stopwatch import FILTER, MODEL, WAIT, current, measured, measured_items

AHEAD = 2
"""Micro-batches that are generated ahead of the encoder, at most."""

NOT_FINITE = "not finite"
"""Reason of an image with NaN or infinite values."""

SIGNATURES = tuple(f"signature_{table}" for table in range(TABLES))
"""Columns of a table of candidates, where earlier copies are rejected."""

CANDIDATE_SCHEMA = pa.schema(
    [pa.field("index", pa.int64(), nullable=False), pa.field("reason", pa.string())]
    + [pa.field(name, pa.uint64(), nullable=False) for name in SIGNATURES]
)
"""One row per image of a unit, in the order of the indices. ``reason``: null if the image is accepted so
far."""


class SampleReceipt(Config):
    """Result of one work unit. Written create-if-absent, so the first of two writers wins."""

    fingerprint: str
    """Of the stream."""
    parts: tuple[LaneRange, ...] = Field(min_length=1)
    """The images of the unit, rejected ones included."""
    shard: ShardEntry | None
    """None if no image was accepted."""
    stats: RowStats | None
    """Of the images in the shard."""
    quarantined: tuple[tuple[int, str], ...] = ()
    """Index and reason of each image that could not be generated."""
    candidates: FileEntry | None = None
    """Table of all images, with filters."""
    numerics: str = Field(default="", max_length=200)
    """Numeric class of the worker, see :mod:`genmod.numerics`."""


@dataclass
class _Written:
    """What was generated of a unit so far, besides the rows of its tar."""

    quarantined: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    indices: list[int] = field(default_factory=list[int])
    reasons: list[str | None] = field(default_factory=list[str | None])
    signatures: list[NDArray[np.uint64]] = field(default_factory=list[NDArray[np.uint64]])

    def table(self) -> bytes:
        """The table of candidates as Parquet; the same values yield the same bytes."""
        signature_NT = np.concatenate(self.signatures)
        columns = {"index": self.indices, "reason": self.reasons}
        columns |= {name: signature_NT[:, table] for table, name in enumerate(SIGNATURES)}
        sink = pa.BufferOutputStream()
        table = pa.table(columns, schema=CANDIDATE_SCHEMA)
        pq.write_table(
            table, sink, compression="zstd", write_statistics=False, use_dictionary=False
        )
        return sink.getvalue().to_pybytes()


def write_sample_unit(
    root: str,
    unit: SampleUnit,
    generator: SampleGenerator,
    filters: Filters | None,
    *,
    model_digest: str,
    stream: str,
    numerics: str = "",
    stored_as: ShardFormat = PNG_SHARD,
    overlaps: bool | None = None,
) -> SampleReceipt:
    """Generate a unit and write its files.

    Args:
        root: URL of the dataset.
        unit: the images.
        generator: of the stream.
        filters: None if every image is accepted.
        model_digest: of the model's manifest, for the sidecars.
        stream: fingerprint of the stream.
        numerics: numeric class of this process.
        stored_as: how the images are stored.
        overlaps: whether images are generated while others are encoded. If not given, only on accelerators:
            on a CPU, two threads take more time than one.
    """
    written = _Written()
    encoder = None
    if filters is not None and stored_as.encoding.is_lossy:
        encoder = ImageEncoder(generator.model.spec, stored_as.encoding)
    shard, stats = None, None
    name = f"{SAMPLE_SPLIT}-{next(unit.ranges()).start:012d}"
    with _generated(unit, generator, overlaps) as ahead:
        rows = _rows(ahead, generator, filters, model_digest, written, encoder=encoder)
        first = next(rows, None)
        if first is not None:
            spec = generator.model.spec
            chained = _chain(first, rows)
            shard, stats = write_shard(
                root, name, SAMPLE_SPLIT, spec, chained, by_content=True, stored_as=stored_as
            )
    candidates = None
    if filters is not None:
        data = written.table()
        path = f"{content_name(name, data)}.candidates.parquet"
        candidates = write_file(root, path, data)
    return SampleReceipt(
        fingerprint=stream,
        parts=unit.intervals,
        shard=shard,
        stats=stats,
        quarantined=tuple(written.quarantined),
        candidates=candidates,
        numerics=numerics,
    )


def _generated(
    unit: SampleUnit, generator: SampleGenerator, overlaps: bool | None
) -> AbstractContextManager[Iterable[tuple[MicroBatch, list[int]]]]:
    """The micro-batches of a unit; with ``overlaps``, a thread generates them ahead of the encoder."""
    if overlaps is None:
        overlaps = next(generator.model.parameters()).device.type != "cpu"
    if not overlaps:
        return nullcontext(measured_items(generator.images(unit.ranges()), MODEL))
    threads, watch = torch.get_num_threads(), current()

    def generate() -> Iterator[tuple[MicroBatch, list[int]]]:
        torch.set_num_threads(threads)  # OpenMP has a number of threads per thread
        yield from measured_items(generator.images(unit.ranges()), MODEL, watch)

    return Prefetch(generate(), AHEAD)


def _chain(first: Row, rows: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rows


def _rows(
    ahead: Iterable[tuple[MicroBatch, list[int]]],
    generator: SampleGenerator,
    filters: Filters | None,
    model_digest: str,
    written: _Written,
    *,
    encoder: ImageEncoder | None,
) -> Iterator[Row]:
    """The accepted rows of micro-batches; everything else is added to ``written``.

    With an encoder that changes pixels, filters see the images as readers will. So the images that a dataset
    lists as accepted are also accepted when they are read from it.
    """
    # Without a thread of their own, the images' time is already counted as the model's.
    for generated, asked in measured_items(ahead, WAIT):
        blobs: Sequence[bytes | None] = [None] * len(generated.batch)
        images = generated
        if encoder is not None:
            images, blobs = _as_stored(generated, encoder)
        batch = images.batch
        reasons: Sequence[str | None] = [None] * len(batch)
        if filters is not None:
            with measured(FILTER):
                reasons = filters.reasons(batch)
            written.signatures.append(_signatures(filters, batch.pixels_BCHW[asked]))
        indices: list[int] = batch.index_B.tolist()
        is_finite: list[bool] = images.is_finite_B.tolist()
        image_BHWC = batch.pixels_BCHW.permute(0, 2, 3, 1).contiguous().numpy()
        for row in asked:
            index, reason = indices[row], reasons[row]
            if not is_finite[row]:
                reason = NOT_FINITE
                written.quarantined.append((index, reason))
            written.indices.append(index)
            written.reasons.append(reason)
            if reason is None:
                yield generator.row_of(index, image_BHWC[row], model_digest, blobs[row])


def _as_stored(images: MicroBatch, encoder: ImageEncoder) -> tuple[MicroBatch, list[bytes]]:
    """The images with the pixels that readers get, and each of them encoded."""
    batch = images.batch
    image_BHWC = batch.pixels_BCHW.permute(0, 2, 3, 1).contiguous().numpy()
    stored = [encoder.stored(image_HWC) for image_HWC in image_BHWC]
    pixels_BHWC = torch.from_numpy(np.stack([pixels_HWC for _, pixels_HWC in stored]))
    pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2).contiguous()
    as_read = MicroBatch(replace(batch, pixels_BCHW=pixels_BCHW), images.is_finite_B)
    return as_read, [blob for blob, _ in stored]


def _signatures(filters: Filters, pixels_BCHW: Tensor) -> NDArray[np.uint64]:
    """Signatures of images, where the filters need them; else zeros."""
    if not filters.config.earlier_copies:
        return np.zeros((len(pixels_BCHW), TABLES), np.uint64)
    return signatures(pixels_BCHW)
