"""Whole objects by URL, and the one atomic step that publishes a result.

Two kinds of object are written. *Data* goes under a name that fixes its bytes (or that no other attempt
uses), so writing it twice does no harm. A *receipt* says that data is whole; it is created only if nobody
has created it before, and of several writers exactly one wins. Readers trust receipts alone.
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
from genmod.storage.retry import wait_for
from genmod.storage.urls import is_s3, join

BLOCK_BYTES = 4 << 20
"""Objects that need not be in memory are read in blocks of this size."""

PENDING = ".pending-"
"""Names that begin so are no objects yet."""


def exists(url: str) -> bool:
    """Whether an object or folder is there."""
    fs, path = urls.filesystem(url)
    return bool(_do(fs, url, "exists", path))


def read_bytes(url: str) -> bytes:
    """The whole object. Raises FileNotFoundError."""
    fs, path = _filesystem(url)
    if is_s3(url) and isinstance(fs, AsyncFileSystem):
        return s3.read(fs, url, path)
    return cast(bytes, _do(fs, url, "cat_file", path))


def read_ranges(url: str, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
    """Pieces of an object, in the order asked for; shorter where it ends. Raises FileNotFoundError."""
    fs, path = _filesystem(url)
    if is_s3(url) and isinstance(fs, AsyncFileSystem):
        return s3.read_ranges(fs, url, path, offsets, lengths)
    return [
        cast(bytes, _do(fs, url, "cat_file", path, start=offset, end=offset + length))
        for offset, length in zip(offsets, lengths, strict=True)
    ]


def read_blocks(url: str) -> Iterator[bytes]:
    """The object in blocks of ``BLOCK_BYTES``, the last one shorter. Raises FileNotFoundError."""
    offset, block = 0, None
    while block is None or len(block) == BLOCK_BYTES:
        (block,) = read_ranges(url, [offset], [BLOCK_BYTES])
        offset += len(block)
        yield block


def size_bytes(url: str) -> int:
    """The object's size. Raises FileNotFoundError."""
    fs, path = urls.filesystem(url)
    return int(_do(fs, url, "info", path)["size"])


def sha256(data: bytes | memoryview) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(url: str) -> str:
    """Hex digest of an object, read in blocks."""
    digest = hashlib.sha256()
    for block in read_blocks(url):
        digest.update(block)
    return digest.hexdigest()


def list_names(url: str) -> list[str]:
    """Sorted names of what lies directly in a folder; empty if there is no such folder."""
    fs, path = urls.filesystem(url)
    fs.invalidate_cache()
    try:
        found = cast(list[str], _do(fs, url, "ls", path, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    itself = path.rstrip("/")  # some stores keep an empty object for a folder
    names = {posixpath.basename(name.rstrip("/")) for name in found if name.rstrip("/") != itself}
    return sorted(name for name in names if name and not name.startswith(PENDING))


def walk_files(url: str) -> Iterator[str]:
    """URLs of every file below a folder, sorted within each. Raises OSError where it may not look."""
    fs, path = _filesystem(url)
    if not fs.exists(path):
        return
    for folder, _, names in cast(Any, fs.walk(path, on_error="raise")):
        for name in sorted(cast(list[str], names)):
            yield str(fs.unstrip_protocol(f"{folder}/{name}"))


def write_bytes(url: str, data: bytes | memoryview) -> None:
    """Write a whole object: it is there with all its bytes or not at all. Replaces what was there."""
    fs, path = _filesystem(url)
    if isinstance(fs, LocalFileSystem):
        pending = _write_pending(path, data)
        os.replace(pending, path)
    elif is_s3(url) and isinstance(fs, AsyncFileSystem):
        s3.write(fs, url, path, bytes(data))
    else:
        _do(fs, url, "pipe_file", path, bytes(data))


def create(url: str, data: bytes) -> bool:
    """Create an object if and only if nothing has that name. True for the one writer that wins.

    On local files an exclusive hard link, elsewhere the store's conditional put (``If-None-Match: *``).
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
        return s3.create(fs, url, path, data)
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    return True


def fsync_dir(folder_url: str) -> None:
    """Make the names in a local folder outlive a power cut; other stores do that by themselves."""
    fs, path = _filesystem(folder_url)
    if isinstance(fs, LocalFileSystem):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove(url: str) -> None:
    """Remove an object or a folder with all that is in it; nothing happens if it is not there."""
    fs, path = urls.filesystem(url)
    with suppress(FileNotFoundError):
        _do(fs, url, "rm", path, recursive=True)


def check_writable(url: str) -> None:
    """Refuse a store that cannot be written or that does not enforce create-if-absent.

    Raises:
        StorageError: and says which of the two.
    """
    name = join(url, f"{PENDING}probe-{uuid.uuid4().hex}")
    try:
        first, second = create(name, b"1"), create(name, b"2")
        held = read_bytes(name)
        remove(name)
    except (OSError, NotImplementedError, ValueError) as error:
        raise StorageError(
            f"{url} cannot be written ({error}); give a root that can: --set root=URL"
        ) from error
    if not first or second or held != b"1":
        raise StorageError(
            f"{url} does not enforce create-if-absent, so two writers could both win; "
            "use a store that does (local files, S3 with If-None-Match)"
        )


def _filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """A file system that makes each request once, for what is one request: patience is ours then."""
    return urls.filesystem(url, tries=1)


def _do(fs: AbstractFileSystem, url: str, method: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method of a file system; patiently where the store is remote."""
    if isinstance(fs, AsyncFileSystem):
        coroutine = getattr(fs, f"_{method}")
        return wait_for(fs, url, lambda: coroutine(*args, **kwargs))
    return getattr(fs, method)(*args, **kwargs)


def _write_pending(path: str, data: bytes | memoryview) -> str:
    """Write and fsync a temporary neighbour of a local path."""
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
