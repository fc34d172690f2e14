"""Whole objects by URL, and create-if-absent writes, which publish results.

Two kinds of objects are written. *Data* has a name that fixes its bytes (or that no other attempt uses), so
it may be written twice. A *receipt* says that data is complete; it is created only if it does not exist, and
exactly one of several writers wins. Readers trust receipts alone.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, cast

from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from genmod.errors import StorageError
from genmod.storage import s3, urls
from genmod.storage.compat import coroutine_of
from genmod.storage.retry import call_with_retries
from genmod.storage.urls import is_s3, join

BLOCK_BYTES = 4 << 20
"""Size of the blocks in which large objects are read."""

PENDING = ".pending-"
"""Prefix of names of unfinished objects."""


def exists(url: str) -> bool:
    """Whether an object or folder exists."""
    fs, path = urls.filesystem(url)
    return bool(_call(fs, url, "exists", path))


def read_bytes(url: str) -> bytes:
    """All bytes of an object. Raises FileNotFoundError."""
    fs, path = _filesystem(url)
    if is_s3(url) and isinstance(fs, AsyncFileSystem):
        return s3.read_object(fs, url, path)
    return cast(bytes, _call(fs, url, "cat_file", path))


def read_ranges(url: str, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
    """Byte ranges of an object, in the order of ``offsets``; shorter where it ends.

    Raises:
        FileNotFoundError: there is no such object.
    """
    fs, path = _filesystem(url)
    if is_s3(url) and isinstance(fs, AsyncFileSystem):
        return s3.read_object_ranges(fs, url, path, offsets, lengths)
    return [
        cast(bytes, _call(fs, url, "cat_file", path, start=offset, end=offset + length))
        for offset, length in zip(offsets, lengths, strict=True)
    ]


def read_blocks(url: str) -> Iterator[bytes]:
    """An object in blocks of ``BLOCK_BYTES``, the last one shorter. Raises FileNotFoundError."""
    offset, block = 0, None
    while block is None or len(block) == BLOCK_BYTES:
        (block,) = read_ranges(url, [offset], [BLOCK_BYTES])
        offset += len(block)
        yield block


def size_bytes(url: str) -> int:
    """Size of an object. Raises FileNotFoundError."""
    fs, path = urls.filesystem(url)
    return int(_call(fs, url, "info", path)["size"])


def sha256(data: bytes | memoryview) -> str:
    """SHA-256 of bytes, in hex.

    >>> sha256(b"")[:12]
    'e3b0c44298fc'
    """
    return hashlib.sha256(data).hexdigest()


def sha256_of(url: str) -> str:
    """SHA-256 of an object, in hex; reads it in blocks."""
    digest = hashlib.sha256()
    for block in read_blocks(url):
        digest.update(block)
    return digest.hexdigest()


def list_names(url: str) -> list[str]:
    """Sorted names of the objects and folders in a folder; empty if it does not exist."""
    fs, path = urls.filesystem(url)
    fs.invalidate_cache()
    try:
        paths = cast(list[str], _call(fs, url, "ls", path, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    itself = path.rstrip("/")  # some stores keep an empty object for a folder
    names = {posixpath.basename(name.rstrip("/")) for name in paths if name.rstrip("/") != itself}
    return sorted(name for name in names if name and not name.startswith(PENDING))


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
    fs, path = _filesystem(url)
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
    fs, path = _filesystem(url)
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
    """Remove an object, or a folder with its contents. Does nothing if it does not exist."""
    fs, path = urls.filesystem(url)
    with suppress(FileNotFoundError):
        _call(fs, url, "rm", path, recursive=True)


def check_writable(url: str) -> None:
    """Check that a folder can be written and that its store enforces create-if-absent.

    Raises:
        StorageError: one of the two does not hold.
    """
    name = join(url, f"{PENDING}probe-{uuid.uuid4().hex}")
    try:
        first, second = create(name, b"1"), create(name, b"2")
        content = read_bytes(name)
        remove(name)
    except (OSError, NotImplementedError, ValueError) as error:
        raise StorageError(
            f"{url} cannot be written ({error}); fix the storage, or choose another root with --set root=URL"
        ) from error
    if not first or second or content != b"1":
        raise StorageError(
            f"{url} does not enforce create-if-absent, so two writers could both win; "
            "use local files or an S3 store that supports If-None-Match"
        )


def _filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """A file system without retries of its own, because :mod:`genmod.storage.retry` retries."""
    return urls.filesystem(url, attempts=1)


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
