"""Writes one planned shard: fetch, check, resize, encode, write, commit a receipt. Independent of Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmod import receipts
from genmod.config import Config
from genmod.data.format.foreign import Rejected, Resize, to_spec
from genmod.data.format.keys import sample_key
from genmod.data.format.shards import Row, ShardReceipt, write_shard
from genmod.data.sources.config import SourceOptions
from genmod.data.sources.registry import open_source
from genmod.data.sources.source import Image, pixels_of
from genmod.manifest import ImageSpec, Split


class ShardJob(Config):
    """Description of one shard to write, from :meth:`genmod.data.sharding.plan.DatasetPlan.job`."""

    root: str
    name: str
    split: Split
    first_index: int
    fingerprint: str
    spec: ImageSpec
    resize: Resize
    rejects_colour: bool = False
    """Whether colour images are rejected, because a sample of grey images decided for one channel."""
    source: str
    options: SourceOptions
    source_fingerprint: str
    refs: tuple[Any, ...]
    names: tuple[str, ...]
    labels: tuple[int, ...] | None


def make_shard(values: Mapping[str, Any]) -> ShardReceipt:
    """Write a shard and commit its receipt.

    Rejected rows leave a gap in the index, so that the other rows keep their index.

    Args:
        values: fields of a :class:`ShardJob`, as JSON values.

    Returns:
        The committed receipt: this one, or that of another process that committed first.

    Raises:
        DataError: the source has changed since it was listed.
        OSError: the storage failed; a retry may succeed.
    """
    job = ShardJob.model_validate(dict(values))
    rejected: list[tuple[str, str, str]] = []
    rows = _rows(job, rejected)
    first = next(rows, None)
    entry, metadata = None, None
    if first is not None:
        all_rows = chain((first,), rows)
        entry, metadata = write_shard(job.root, job.name, job.split, job.spec, all_rows)
    receipt = ShardReceipt(
        fingerprint=job.fingerprint, shard=entry, metadata=metadata, rejected=tuple(rejected)
    )
    return receipts.commit(job.root, job.name, receipt)


def _rows(job: ShardJob, rejected: list[tuple[str, str, str]]) -> Iterator[Row]:
    images = open_source(job.source, job.options).fetch(job.refs, job.source_fingerprint)
    for number, image in enumerate(images):
        name = job.names[number]
        key = sample_key(name)
        try:
            image_HWC = _converted(image, job)
        except Rejected as reason:
            rejected.append((key, name, str(reason)))
            continue
        yield Row(
            key=key,
            index=job.first_index + number,
            image_HWC=image_HWC,
            label=job.labels[number] if job.labels else None,
            name=name if name != key else None,
        )


def _converted(image: Image, job: ShardJob) -> NDArray[np.uint8]:
    """Decode an image, and convert it to the dataset's shape. Raises Rejected."""
    pixels = pixels_of(image, job.spec if job.resize == "none" else None)
    if job.rejects_colour and pixels.ndim == 3 and not np.all(pixels == pixels[:, :, :1]):
        raise Rejected("is in colour, sampled images are grey; set data.channels to 3 or 1")
    return to_spec(pixels, job.spec, job.resize)
