"""Whole objects by URL, and create-if-absent writes, which publish results.

Two kinds of objects are written. *Data* has a name that fixes its bytes (or that no other attempt uses), so
it may be written twice. A *receipt* says that data is complete; it is created only if it does not exist, and
exactly one of several writers wins. Readers trust receipts alone.

New files get the mode that the process's umask allows (usually 0644), also while they are pending.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, cast

from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from genmod.budget import BUDGET
from genmod.errors import StorageError
from genmod.storage import local, s3, urls
from genmod.storage.compat import coroutine_of
from genmod.storage.local import too_long
from genmod.storage.retry import call_with_retries
from genmod.storage.urls import check_relative, is_http, is_s3, join_below

BLOCK_BYTES = 4 << 20
"""Size of the blocks in which large objects are read."""

_WRITTEN = ("mtime", "LastModified", "last_modified", "updated")
"""Keys of the time of the last write in what file systems tell about an object."""

PENDING = ".pending-"
"""Prefix of names of unfinished objects."""


def exists(url: str) -> bool:
    """Whether an object or folder exists."""
    fs, path = urls.filesystem(url)
    return bool(_call(fs, url, "exists", path))


def read_bytes(url: str, limit_bytes: int = BUDGET.file_bytes) -> bytes:
    """All bytes of an object.

    Args:
        url: or a local path.
        limit_bytes: the most that is read; checked before and while reading.

    Raises:
        FileNotFoundError: there is no such object.
        DataError: the object is longer than the limit.
        StorageError: it is a device, a pipe or a socket.
    """
    fs, path = _filesystem(url)
    if isinstance(fs, LocalFileSystem):
        return local.read_whole(local.open_regular(path), url, limit_bytes)
    if is_s3(url) and isinstance(fs, AsyncFileSystem):
        return s3.read_object(fs, url, path, limit_bytes)
    if is_http(url) and isinstance(fs, AsyncFileSystem):
        from genmod.storage.web import read_file

        return read_file(fs, url, limit_bytes)
    if (size := size_bytes(url)) > limit_bytes:
        raise too_long(url, limit_bytes)
    return cast(bytes, _call(fs, url, "cat_file", path, start=0, end=size)) if size else b""


def read_below(url: str, path: str, limit_bytes: int = BUDGET.file_bytes) -> bytes:
    """As :func:`read_bytes`, for a file that a manifest names.

    Args:
        url: the manifest's folder.
        path: of the file, relative to the folder.
        limit_bytes: the most that is read.

    Raises:
        StorageError: the path or a link leads out of the folder.
    """
    full = join_below(url, path)
    fs, root = _filesystem(url)
    if isinstance(fs, LocalFileSystem):
        return local.read_whole(local.open_below_folder(root, path), full, limit_bytes)
    return read_bytes(full, limit_bytes)


def open_below(url: str, path: str) -> int | None:
    """A descriptor of a local file that a manifest in the folder ``url`` names; None for a remote folder.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the path or a link leads out of the folder, or it is not a regular file.
    """
    check_relative(path)
    fs, root = _filesystem(url)
    return local.open_below_folder(root, path) if isinstance(fs, LocalFileSystem) else None


def read_ranges(url: str, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
    """Byte ranges of an object, in the order of ``offsets``; shorter where it ends.

    Raises:
        FileNotFoundError: there is no such object.
    """
    fs, path = _filesystem(url)
    if is_s3(url) and isinstance(fs, AsyncFileSystem):
        return s3.read_object_ranges(fs, url, path, offsets, lengths)
    if isinstance(fs, LocalFileSystem):
        return local.ranges_of_file(path, offsets, lengths)
    if is_http(url) and isinstance(fs, AsyncFileSystem):
        from genmod.storage.web import read_range

        spans = zip(offsets, lengths, strict=True)
        return [read_range(fs, url, start, start + length) for start, length in spans]
    return [
        cast(bytes, _call(fs, url, "cat_file", path, start=offset, end=offset + length))
        for offset, length in zip(offsets, lengths, strict=True)
    ]


def read_blocks(url: str) -> Iterator[bytes]:
    """An object in blocks of ``BLOCK_BYTES``, the last one shorter. Raises FileNotFoundError."""
    fs, path = _filesystem(url)
    if isinstance(fs, LocalFileSystem):
        yield from local.blocks_of_file(path, BLOCK_BYTES)
        return
    offset, block = 0, None
    while block is None or len(block) == BLOCK_BYTES:
        (block,) = read_ranges(url, [offset], [BLOCK_BYTES])
        offset += len(block)
        yield block


def size_bytes(url: str) -> int:
    """Size of an object. Raises FileNotFoundError; StorageError if a web server does not tell it."""
    fs, path = urls.filesystem(url)
    if (size := _call(fs, url, "info", path)["size"]) is None:
        raise StorageError(f"{url}: the server does not tell the file's size; download the file")
    return int(size)


def written_s(url: str) -> float | None:
    """When an object was written, by its store's clock, in seconds since 1970; None if it does not tell.

    Raises:
        FileNotFoundError: there is no such object.
    """
    fs, path = urls.filesystem(url)
    fs.invalidate_cache()
    info = cast("dict[str, Any]", _call(fs, url, "info", path))
    written = next((info[key] for key in _WRITTEN if info.get(key) is not None), None)
    if isinstance(written, datetime):
        written = written.timestamp()
    return float(written) if isinstance(written, float | int) else None


def sha256(data: bytes | memoryview) -> str:
    """SHA-256 of bytes, in hex.

    >>> sha256(b"")[:12]
    'e3b0c44298fc'
    """
    return hashlib.sha256(data).hexdigest()


def sha256_of(url: str, limit_bytes: int = BUDGET.file_bytes) -> str:
    """SHA-256 of an object, in hex; reads it in blocks. DataError if it is longer than the limit."""
    digest, length = hashlib.sha256(), 0
    for block in read_blocks(url):
        length += len(block)
        if length > limit_bytes:
            raise too_long(url, limit_bytes)
        digest.update(block)
    return digest.hexdigest()


def list_names(url: str, *, pending: bool = False) -> list[str]:
    """Sorted names of the objects and folders in a folder; empty if it does not exist.

    Args:
        url: the folder.
        pending: whether unfinished objects are listed too.
    """
    fs, path = urls.filesystem(url)
    fs.invalidate_cache()
    try:
        paths = cast(list[str], _call(fs, url, "ls", path, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    itself = path.rstrip("/")  # some stores keep an empty object for a folder
    names = {posixpath.basename(name.rstrip("/")) for name in paths if name.rstrip("/") != itself}
    return sorted(name for name in names if name and (pending or not name.startswith(PENDING)))


def walk_files(url: str) -> Iterator[str]:
    """URLs of all files below a folder, sorted within each folder. OSError for an unreadable folder."""
    fs, path = _filesystem(url)
    if not fs.exists(path):
        return
    for folder, _, names in cast(Any, fs.walk(path, on_error="raise")):
        for name in sorted(cast(list[str], names)):
            yield str(fs.unstrip_protocol(f"{folder}/{name}"))


def write_bytes(url: str, data: bytes | memoryview) -> None:
    """Write a whole object atomically. Replaces an existing one."""
    fs, path = _writable(url)
    if isinstance(fs, LocalFileSystem):
        pending = _write_pending(path, data)
        os.replace(pending, path)
    elif is_s3(url) and isinstance(fs, AsyncFileSystem):
        s3.write_object(fs, url, path, bytes(data))
    else:
        _call(fs, url, "pipe_file", path, bytes(data))


def create(url: str, data: bytes) -> bool:
    """Create an object if it does not exist. True for the one writer that wins.

    Uses an exclusive hard link for local files, and a conditional put (``If-None-Match: *``) elsewhere.
    """
    fs, path = _writable(url)
    if isinstance(fs, LocalFileSystem):
        pending = _write_pending(path, data)
        try:
            os.link(pending, path)
        except FileExistsError:
            return False
        finally:
            os.unlink(pending)
        return True
    if is_s3(url) and isinstance(fs, AsyncFileSystem):
        return s3.create_object(fs, url, path, data)
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    return True


def fsync_dir(folder_url: str) -> None:
    """Flush a local folder's entries to disk, so that they survive a power cut. Does nothing elsewhere."""
    fs, path = _filesystem(folder_url)
    if isinstance(fs, LocalFileSystem):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove(url: str) -> None:
    """Remove an object, a folder with its contents, or a link alone. Does nothing if it does not exist."""
    fs, path = _writable(url, urls.REQUEST_ATTEMPTS)
    with suppress(FileNotFoundError):
        _call(fs, url, "rm", path, recursive=True)


def _filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """A file system without retries of its own, because :mod:`genmod.storage.retry` retries."""
    return urls.filesystem(url, attempts=1)


def _writable(url: str, attempts: int = 1) -> tuple[AbstractFileSystem, str]:
    """As :func:`_filesystem`. StorageError for schemes that are read only."""
    if is_http(url):
        raise StorageError(f"{url} is read only; write to a folder, s3://, gs:// or az:// instead")
    return urls.filesystem(url, attempts)


def _call(fs: AbstractFileSystem, url: str, method: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method of a file system, with retries if the store is remote."""
    if isinstance(fs, AsyncFileSystem):
        coroutine = coroutine_of(fs, method)
        return call_with_retries(fs, url, lambda: coroutine(*args, **kwargs))
    return getattr(fs, method)(*args, **kwargs)


def _write_pending(path: str, data: bytes | memoryview) -> str:
    """Write and fsync a temporary file in the folder of a local path."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    pending = os.path.join(folder, f"{PENDING}{uuid.uuid4().hex}")
    try:
        with open(pending, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        with suppress(OSError):
            os.unlink(pending)
        raise
    return pending
