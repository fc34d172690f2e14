"""S3 stores: reads in blocks, verified writes, and conditional creation.

Reads and large writes are split into short requests, some of them in parallel, so that each can be retried
alone. A write is verified by the store's digest (the ETag). Some stores compute other ETags, e.g. with
encryption by a key service; the object is then read back and compared.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from fsspec.asyn import AsyncFileSystem

from genmod.budget import BUDGET
from genmod.errors import StorageError
from genmod.storage.compat import call_s3
from genmod.storage.local import too_long
from genmod.storage.retry import call_with_retries, run_on_loop, status_of, with_retries

RANGE_BYTES = 4 << 20
"""Largest range of one read request."""

PART_BYTES = 8 << 20
"""Largest body of one write request; larger objects are uploaded in parts."""

_PARALLEL = 8
"""Parallel requests of one read or write."""

_GAP_BYTES = 64 << 10
"""Ranges with a smaller gap between them are read together."""

_WRITER = "genmod-writer"
"""Object metadata that identifies the attempt which created the object."""

T = TypeVar("T")


def read_object(fs: AsyncFileSystem, url: str, path: str, limit_bytes: int) -> bytes:
    """A whole object. Raises FileNotFoundError; DataError if it is longer than the limit."""

    async def read() -> bytes:
        first = await _read_range(fs, url, path, 0, RANGE_BYTES)
        end = len(first)
        if end == RANGE_BYTES:
            end = await with_retries(url, lambda: _size(fs, path))
        if end > limit_bytes:
            raise too_long(url, limit_bytes)
        if end <= RANGE_BYTES:
            return first
        starts = range(RANGE_BYTES, end, RANGE_BYTES)
        spans = [(start, min(start + RANGE_BYTES, end)) for start in starts]
        rest = await _gather([_reader(fs, url, path, start, stop) for start, stop in spans])
        return b"".join([first, *rest])

    return run_on_loop(fs, read)


def read_object_ranges(
    fs: AsyncFileSystem, url: str, path: str, offsets: Sequence[int], lengths: Sequence[int]
) -> list[bytes]:
    """Byte ranges of an object, in the order of ``offsets``; shorter where the object ends."""
    # Join close ranges into groups of (start, stop, positions in the result).
    order = sorted(range(len(offsets)), key=lambda k: offsets[k])
    groups: list[tuple[int, int, list[int]]] = []
    for k in order:
        start, stop = offsets[k], offsets[k] + lengths[k]
        if groups:
            first, last, members = groups[-1]
            if start - last < _GAP_BYTES and max(last, stop) - first <= RANGE_BYTES:
                groups[-1] = (first, max(last, stop), [*members, k])
                continue
        groups.append((start, stop, [k]))

    async def read() -> list[bytes]:
        return await _gather([_reader(fs, url, path, start, stop) for start, stop, _ in groups])

    # Cut the requested ranges out of the groups.
    ranges = [b""] * len(offsets)
    for (start, _, members), data in zip(groups, run_on_loop(fs, read), strict=True):
        for k in members:
            ranges[k] = data[offsets[k] - start :][: lengths[k]]
    return ranges


def write_object(fs: AsyncFileSystem, url: str, path: str, data: bytes) -> None:
    """Write a whole object and verify it.

    Raises:
        StorageError: the store contains other bytes.
    """
    parts = [data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES)] or [b""]
    if len(parts) == 1:
        reply = call_with_retries(fs, url, lambda: call_s3(fs, "put_object", path, Body=data))
        etag, expected = _etag(reply), _md5(data)
    else:
        etag = run_on_loop(fs, lambda: _write_parts(fs, url, path, parts))
        expected = f"{_md5(b''.join(_md5_bytes(part) for part in parts))}-{len(parts)}"
    if etag != expected and read_object(fs, url, path, BUDGET.file_bytes) != data:
        raise StorageError(
            f"{url}: the store contains other bytes than were written; do not use this store"
        )


def create_object(fs: AsyncFileSystem, url: str, path: str, data: bytes) -> bool:
    """Create an object if it does not exist (``If-None-Match: *``). True for the one writer that wins.

    If the store's answer to a successful request is lost, the retry finds an existing object. So each writer
    marks its object with metadata of its own, and a writer that seems to lose compares the mark.
    """
    mark = uuid.uuid4().hex

    async def put() -> bool:
        try:
            await call_s3(
                fs, "put_object", path, Body=data, IfNoneMatch="*", Metadata={_WRITER: mark}
            )
        except OSError as error:
            if isinstance(error, FileExistsError) or status_of(error)[0] == 412:
                return False
            raise
        return True

    async def create() -> bool:
        if await with_retries(url, put):
            return True
        try:
            head = await with_retries(url, lambda: call_s3(fs, "head_object", path))
        except FileNotFoundError:  # removed meanwhile
            return False
        return head.get("Metadata", {}).get(_WRITER) == mark

    return run_on_loop(fs, create)


async def _write_parts(fs: AsyncFileSystem, url: str, path: str, parts: Sequence[bytes]) -> str:
    """Upload an object in parts; its ETag. A failed upload is aborted and leaves nothing."""
    created = await with_retries(url, lambda: call_s3(fs, "create_multipart_upload", path))
    upload = {"UploadId": str(created["UploadId"])}

    def sender(number: int, part: bytes) -> Callable[[], Awaitable[dict[str, Any]]]:
        parameters = {**upload, "PartNumber": number, "Body": part}
        return lambda: with_retries(url, lambda: call_s3(fs, "upload_part", path, **parameters))

    try:
        replies = await _gather([sender(number, part) for number, part in enumerate(parts, 1)])
        uploaded = [{"PartNumber": n, "ETag": reply["ETag"]} for n, reply in enumerate(replies, 1)]

        async def complete() -> dict[str, Any]:
            try:
                return await call_s3(
                    fs,
                    "complete_multipart_upload",
                    path,
                    **upload,
                    MultipartUpload={"Parts": uploaded},
                )
            except FileNotFoundError:
                # Completed before, but the answer was lost; the caller verifies.
                return await call_s3(fs, "head_object", path)

        return _etag(await with_retries(url, complete))
    except BaseException:
        with suppress(Exception):
            await call_s3(fs, "abort_multipart_upload", path, **upload)
        raise


def _reader(
    fs: AsyncFileSystem, url: str, path: str, start: int, stop: int
) -> Callable[[], Awaitable[bytes]]:
    return lambda: _read_range(fs, url, path, start, stop)


async def _read_range(fs: AsyncFileSystem, url: str, path: str, start: int, stop: int) -> bytes:
    """Bytes start .. stop - 1, fewer where the object ends, in requests of ``RANGE_BYTES``."""
    blocks: list[bytes] = []
    for first in range(start, stop, RANGE_BYTES):
        last = min(first + RANGE_BYTES, stop)
        block = await with_retries(url, lambda b=first, e=last: _get(fs, path, b, e))
        blocks.append(block)
        if len(block) < last - first:
            break
    return b"".join(blocks)


async def _get(fs: AsyncFileSystem, path: str, start: int, stop: int) -> bytes:
    """Bytes start .. stop - 1 in one request; never more, whatever the store sends."""
    span = f"bytes={start}-{stop - 1}"
    try:
        reply = await call_s3(fs, "get_object", path, Range=span)
    except OSError as error:
        if status_of(error)[0] == 416:  # the object ends before this range begins
            return b""
        raise
    body = reply["Body"]
    try:
        data = bytearray()
        while len(data) <= stop - start:
            block = await body.read(stop - start + 1 - len(data))
            if not block:
                return bytes(data)
            data += block
    finally:
        body.close()
    raise StorageError(
        f"{path}: the store sends more bytes than were asked for; do not use this store"
    )


async def _size(fs: AsyncFileSystem, path: str) -> int:
    return int((await call_s3(fs, "head_object", path))["ContentLength"])


async def _gather(requests: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Answers in the order of the requests, ``_PARALLEL`` at a time; the first error cancels the others."""
    slots = asyncio.Semaphore(_PARALLEL)

    async def send(request: Callable[[], Awaitable[T]]) -> T:
        async with slots:
            return await request()

    tasks = [asyncio.ensure_future(send(request)) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _etag(reply: dict[str, Any]) -> str:
    return str(reply.get("ETag", "")).strip('"')


def _md5_bytes(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _md5(data: bytes) -> str:
    return _md5_bytes(data).hex()
