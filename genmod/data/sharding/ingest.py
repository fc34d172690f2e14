"""Makes one planned shard: fetch, check, conform, write, sign. What a task runs; knows no Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from genmod import receipts
from genmod.config import Config
from genmod.data.format.codecs import Rejected, Resize, to_spec
from genmod.data.format.keys import sample_key
from genmod.data.format.shards import Row, ShardReceipt, write_shard
from genmod.data.sources.registry import open_source
from genmod.data.sources.source import pixels_of
from genmod.manifest import ImageSpec, Split


class ShardJob(Config):
    """What :meth:`genmod.data.sharding.plan.DatasetPlan.job` says."""

    root: str
    name: str
    split: Split
    first_index: int
    fingerprint: str
    spec: ImageSpec
    resize: Resize
    source: str
    source_fingerprint: str
    refs: tuple[Any, ...]
    names: tuple[str, ...]
    labels: tuple[int, ...] | None


def make_shard(values: Mapping[str, Any]) -> ShardReceipt:
    """Make a shard and its receipt; the receipt that counts comes back.

    Rows that cannot be used are refused and leave a gap in the index, so the others do not move.

    Raises:
        DataError: the source is no longer what was planned.
        OSError: a store failed; trying again may help.
    """
    job = ShardJob.model_validate(dict(values))
    rejected: list[tuple[str, str, str]] = []
    rows = _rows(job, rejected)
    first = next(rows, None)
    entry, metadata = None, None
    if first is not None:
        whole = chain((first,), rows)
        entry, metadata = write_shard(job.root, job.name, job.split, job.spec, whole)
    receipt = ShardReceipt(
        fingerprint=job.fingerprint, shard=entry, metadata=metadata, rejected=tuple(rejected)
    )
    return receipts.commit(job.root, job.name, receipt)


def _rows(job: ShardJob, rejected: list[tuple[str, str, str]]) -> Iterator[Row]:
    images = open_source(job.source).fetch(job.refs, job.source_fingerprint)
    for number, image in enumerate(images):
        name = job.names[number]
        key = sample_key(name)
        try:
            image_HWC = to_spec(pixels_of(image), job.spec, job.resize)
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
