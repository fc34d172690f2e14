"""What S3 stores need beyond a file system: reads in blocks, verified writes, conditional creation.

Reads and large writes go in pieces, some at a time, so that each request is short and is begun anew by
itself. A write counts when the store's own digest (the ETag) is that of our bytes, or, where a store makes
its ETags in another way, as with encryption by a key service, when the object read back is what was written.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

from fsspec.asyn import AsyncFileSystem

from genmod.errors import StorageError
from genmod.storage.retry import run, status_of, wait_for, with_retries

BLOCK_BYTES = 4 << 20
"""Largest piece of a read."""

PART_BYTES = 8 << 20
"""WorkUnit of a write; what is larger goes up in parts."""

AT_ONCE = 8
"""Requests of one read or write that are under way."""

GAP_BYTES = 64 << 10
"""Ranges with less than this between them are read as one."""

_WRITER = "genmod-writer"
"""Metadata that says which attempt has created an object."""

T = TypeVar("T")


def read(fs: AsyncFileSystem, url: str, path: str) -> bytes:
    """A whole object. Raises FileNotFoundError."""

    async def whole() -> bytes:
        first = await _range(fs, url, path, 0, BLOCK_BYTES)
        if len(first) < BLOCK_BYTES:
            return first
        end = await with_retries(url, lambda: _size(fs, path))
        starts = range(BLOCK_BYTES, end, BLOCK_BYTES)
        spans = [(start, min(start + BLOCK_BYTES, end)) for start in starts]
        rest = await _gather([_reader(fs, url, path, start, stop) for start, stop in spans])
        return b"".join([first, *rest])

    return run(fs, whole)


def read_ranges(
    fs: AsyncFileSystem, url: str, path: str, offsets: Sequence[int], lengths: Sequence[int]
) -> list[bytes]:
    """Pieces of an object, in the order asked for; shorter where the object ends."""
    order = sorted(range(len(offsets)), key=lambda k: offsets[k])
    groups: list[tuple[int, int, list[int]]] = []
    for k in order:
        start, stop = offsets[k], offsets[k] + lengths[k]
        if groups:
            begin, end, members = groups[-1]
            if start - end < GAP_BYTES and max(end, stop) - begin <= BLOCK_BYTES:
                groups[-1] = (begin, max(end, stop), [*members, k])
                continue
        groups.append((start, stop, [k]))

    async def all_of_them() -> list[bytes]:
        return await _gather([_reader(fs, url, path, begin, end) for begin, end, _ in groups])

    pieces = [b""] * len(offsets)
    for (begin, _, members), data in zip(groups, run(fs, all_of_them), strict=True):
        for k in members:
            pieces[k] = data[offsets[k] - begin :][: lengths[k]]
    return pieces


def write(fs: AsyncFileSystem, url: str, path: str, data: bytes) -> None:
    """Write a whole object, and see that the store has those bytes.

    Raises:
        StorageError: it has others.
    """
    parts = [data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES)] or [b""]
    if len(parts) == 1:
        reply = wait_for(fs, url, lambda: _call(fs, "put_object", path, Body=data))
        etag, wanted = _etag(reply), _md5(data)
    else:
        etag = run(fs, lambda: _write_parts(fs, url, path, parts))
        wanted = f"{_md5(b''.join(_md5_bytes(part) for part in parts))}-{len(parts)}"
    if etag != wanted and read(fs, url, path) != data:
        raise StorageError(f"{url}: the store holds other bytes than were written; do not trust it")


def create(fs: AsyncFileSystem, url: str, path: str, data: bytes) -> bool:
    """Create an object if it is not there: ``If-None-Match: *``. True for the one writer that wins.

    An answer may be lost after the store has acted on the request, and the next attempt then finds the object
    there. So each writer leaves a mark of its own with the object, and who loses looks whose mark it is.
    """
    mark = uuid.uuid4().hex

    async def put() -> bool:
        try:
            await _call(
                fs, "put_object", path, Body=data, IfNoneMatch="*", Metadata={_WRITER: mark}
            )
        except OSError as error:
            if isinstance(error, FileExistsError) or status_of(error)[0] == 412:
                return False
            raise
        return True

    async def whole() -> bool:
        if await with_retries(url, put):
            return True
        try:
            found = await with_retries(url, lambda: _call(fs, "head_object", path))
        except FileNotFoundError:  # removed meanwhile
            return False
        return found.get("Metadata", {}).get(_WRITER) == mark

    return run(fs, whole)


async def _write_parts(fs: AsyncFileSystem, url: str, path: str, parts: Sequence[bytes]) -> str:
    """The ETag of an object that was uploaded in parts; nothing stays of an upload that fails."""
    begun = await with_retries(url, lambda: _call(fs, "create_multipart_upload", path))
    upload = {"UploadId": str(begun["UploadId"])}

    def sender(number: int, part: bytes) -> Callable[[], Awaitable[dict[str, Any]]]:
        more = {**upload, "PartNumber": number, "Body": part}
        return lambda: with_retries(url, lambda: _call(fs, "upload_part", path, **more))

    try:
        sent = await _gather([sender(number, part) for number, part in enumerate(parts, 1)])
        listed = [{"PartNumber": n, "ETag": reply["ETag"]} for n, reply in enumerate(sent, 1)]

        async def complete() -> dict[str, Any]:
            try:
                return await _call(
                    fs,
                    "complete_multipart_upload",
                    path,
                    **upload,
                    MultipartUpload={"Parts": listed},
                )
            except FileNotFoundError:  # done before, and the answer was lost; the caller compares
                return await _call(fs, "head_object", path)

        return _etag(await with_retries(url, complete))
    except BaseException:
        with suppress(Exception):
            await _call(fs, "abort_multipart_upload", path, **upload)
        raise


def _reader(
    fs: AsyncFileSystem, url: str, path: str, start: int, stop: int
) -> Callable[[], Awaitable[bytes]]:
    return lambda: _range(fs, url, path, start, stop)


async def _range(fs: AsyncFileSystem, url: str, path: str, start: int, stop: int) -> bytes:
    """Bytes start .. stop-1, fewer where the object ends, in as many requests as that takes."""
    pieces: list[bytes] = []
    for begin in range(start, stop, BLOCK_BYTES):
        end = min(begin + BLOCK_BYTES, stop)
        piece = await with_retries(url, lambda b=begin, e=end: _get(fs, path, b, e))
        pieces.append(piece)
        if len(piece) < end - begin:
            break
    return b"".join(pieces)


async def _get(fs: AsyncFileSystem, path: str, begin: int, end: int) -> bytes:
    try:
        return cast(bytes, await cast(Any, fs)._cat_file(path, start=begin, end=end))
    except OSError as error:
        if status_of(error)[0] == 416:  # the object ends before this range begins
            return b""
        raise


async def _size(fs: AsyncFileSystem, path: str) -> int:
    return int((await _call(fs, "head_object", path))["ContentLength"])


async def _call(fs: AsyncFileSystem, method: str, path: str, **parameters: Any) -> dict[str, Any]:
    s3 = cast(Any, fs)
    bucket, key, _ = s3.split_path(path)
    return await s3._call_s3(method, Bucket=bucket, Key=key, **parameters)


async def _gather(makers: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """All of them in order, ``AT_ONCE`` at a time; the first error ends the others."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(make: Callable[[], Awaitable[T]]) -> T:
        async with slots:
            return await make()

    tasks = [asyncio.ensure_future(one(make)) for make in makers]
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
