"""Fetches byte ranges of files and objects, several per request."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any, cast

from fsspec.implementations.local import LocalFileSystem

from genmod.budget import BUDGET
from genmod.data.format.foreign import Rejected

MAX_FILE_BYTES = BUDGET.image_file_bytes
"""Larger image files are rejected without reading them."""

_UNREADABLE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_CHANGED = "its size has changed since it was listed"

_BATCH_OBJECTS = 32
"""Maximum number of byte ranges in one request to a store."""

_BATCH_BYTES = 1 << 26
"""Maximum size of one request, except for a single larger range."""


def fetch_bytes(size_bytes: int) -> int:
    """Memory that a file takes when it is fetched: none if it is rejected for its size."""
    return size_bytes if 0 <= size_bytes <= MAX_FILE_BYTES else 0


def fetch_ranges(
    fs: Any, paths: Sequence[str], starts: Sequence[int], sizes: Sequence[int]
) -> Iterator[bytes | Rejected]:
    """Fetch byte ranges of objects, several per request.

    Args:
        fs: file system of the objects.
        paths: object of each range.
        starts: first byte of each range.
        sizes: bytes of each range.

    Yields:
        The bytes of each range, in order; Rejected if it is too large, missing, forbidden or has changed.
    """
    batch: list[int] = []
    for row, size in enumerate(sizes):
        # Fetch the batch when it is full, and before a rejected row, to keep the order.
        batch_bytes = sum(sizes[other] for other in batch) + size
        is_full = len(batch) == _BATCH_OBJECTS or batch_bytes > _BATCH_BYTES
        is_rejected = not 0 <= size <= MAX_FILE_BYTES
        if batch and (is_full or is_rejected):
            yield from _fetch_batch(fs, paths, starts, sizes, batch)
            batch = []
        if is_rejected:
            yield Rejected(f"a file of {size} bytes, more than {MAX_FILE_BYTES}")
        else:
            batch.append(row)
    if batch:
        yield from _fetch_batch(fs, paths, starts, sizes, batch)


def _fetch_batch(
    fs: Any, paths: Sequence[str], starts: Sequence[int], sizes: Sequence[int], rows: Sequence[int]
) -> Iterator[bytes | Rejected]:
    if isinstance(fs, LocalFileSystem):
        for row in rows:
            yield _read_local(paths[row], starts[row], sizes[row])
        return
    ends = [starts[row] + sizes[row] for row in rows]
    results = fs.cat_ranges(
        [paths[row] for row in rows], [starts[row] for row in rows], ends, on_error="return"
    )
    for row, blob in zip(rows, cast("list[Any]", results), strict=True):
        if isinstance(blob, _UNREADABLE):
            yield Rejected(f"cannot be read: {type(blob).__name__}")
        elif isinstance(blob, BaseException):
            raise blob
        elif len(blob) != sizes[row]:
            yield Rejected(_CHANGED)
        else:
            yield cast(bytes, blob)


def _read_local(path: str, start: int, size_bytes: int) -> bytes | Rejected:
    """Read a range of a regular file."""
    handle = open_image(path)
    if isinstance(handle, Rejected):
        return handle
    with open(handle, "rb") as stream:
        stream.seek(start)
        data = stream.read(size_bytes)
    return data if len(data) == size_bytes else Rejected(_CHANGED)


def open_image(path: str) -> int | Rejected:
    """A descriptor of a local file; a FIFO that took its place is rejected, not waited for."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if isinstance(error, _UNREADABLE) or error.errno in (errno.ENXIO, errno.ELOOP):
            return Rejected(f"cannot be read: {type(error).__name__}")
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        return Rejected("is not a regular file")
    return handle
