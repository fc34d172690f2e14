"""Identity of the files of a source: two inputs are the same only if their bytes are.

A dataset's fingerprint covers the identity of each file that it is made from, so that a file that was
replaced by another of the same name and size makes another dataset.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from genmod import storage
from genmod.data.sources.config import Identity
from genmod.errors import DataError, sanitize

_THREADS = 8
"""Files that are read in parallel."""

_CHECKSUMS = ("md5Hash", "Content-MD5", "content_md5", "crc32c", "Digest", "ETag", "etag")
"""Fields of a store's listing that change with the bytes of a file, by priority."""

_BLOCK_BYTES = 1 << 18
"""Size of the blocks in which files are read."""

SHORT_DIGITS = 16
"""Hexadecimal digits of a digest in a ref."""

ItemT = TypeVar("ItemT")
MappedT = TypeVar("MappedT")


def identify(
    urls: Iterable[str], identity: Identity, infos: Iterable[Mapping[str, Any]] | None = None
) -> Iterator[str]:
    """Identity of each file, in order.

    With ``content``, it is the SHA-256 of a local file, and elsewhere the checksum or ETag of the store's or
    server's answer, else the time of modification that it reports; a file without either is read. With
    ``time``, local files are not read: size and time of modification in nanoseconds count.

    Args:
        urls: URLs or local paths; read in parallel threads, a bounded number ahead.
        identity: ``data.identity``.
        infos: what a listing said about the files, to save requests.

    Raises:
        DataError: a file does not exist, or cannot be read.
    """
    if infos is not None:
        pairs: Iterable[tuple[str, Mapping[str, Any] | None]] = zip(urls, infos, strict=True)
    else:
        pairs = ((url, None) for url in urls)
    yield from in_order(lambda pair: _identity(*pair, identity), pairs)


def _identity(url: str, info: Mapping[str, Any] | None, identity: Identity) -> str:
    fs, path = storage.filesystem(url)
    try:
        if isinstance(fs, LocalFileSystem):
            return local_identity(path, identity)
        text = store_identity(fs.info(path) if info is None else info)
        return text or f"sha256 {storage.sha256_of(url)}"
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise DataError(
            f"{sanitize(url)} cannot be read ({error.strerror or type(error).__name__}); check the file"
        ) from None


def local_identity(path: str, identity: Identity) -> str:
    """Identity of a local file. Raises OSError; StorageError if it is not a regular file."""
    if identity == "time":
        info = os.stat(path)
        return f"time {info.st_size} {info.st_mtime_ns}"
    return f"sha256 {storage.sha256_of(path)}"


def store_identity(info: Mapping[str, Any]) -> str | None:
    """Identity of a remote file by what its store's listing or answer says; None if it says nothing.

    >>> store_identity({"size": 3, "ETag": '"abc"'})
    'ETag 3 "abc"'
    """
    fields: dict[str, Any] = {**info, **(info.get("content_settings") or {})}
    for name in (*_CHECKSUMS, "Last-Modified"):
        value = fields.get(name)
        if value:
            text = bytes(value).hex() if isinstance(value, bytes | bytearray) else str(value)
            return f"{name} {info.get('size')} {text}"
    return None


def open_sha256(handle: int) -> str:
    """SHA-256 of an open local file, in hex; quick for small files."""
    digest, offset = hashlib.sha256(), 0
    while block := os.pread(handle, _BLOCK_BYTES, offset):
        digest.update(block)
        offset += len(block)
        if len(block) < _BLOCK_BYTES:
            break
    return digest.hexdigest()


def short_digest(data: bytes) -> str:
    """Digest of a file's bytes for the ref of the file, to see a change between listing and fetching."""
    return hashlib.sha256(data).hexdigest()[:SHORT_DIGITS]


def file_stamp(url: str, identity: str) -> str:
    """Short text for refs, by which :func:`is_unchanged` sees a change between listing and fetching.

    Args:
        url: a file.
        identity: of the file, from :func:`identify`.
    """
    fs, path = storage.filesystem(url)
    if isinstance(fs, LocalFileSystem) and identity.startswith("sha256 "):
        return f"{os.stat(path).st_mtime_ns} {identity[: 7 + SHORT_DIGITS]}"
    return identity


def is_unchanged(url: str, stamp: str) -> bool:
    """Whether a file is the one that was listed.

    A local file is read only if its time of modification is another one: it may be a copy on another node.
    What was compared is compared once in a process.
    """
    fs, path = storage.filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        text = store_identity(fs.info(path))
        return text is None or text == stamp or stamp.startswith("sha256 ")
    if stamp.startswith("time "):
        return local_identity(path, "time") == stamp
    time_ns, _, digest = stamp.partition(" ")
    state = os.stat(path)
    if str(state.st_mtime_ns) == time_ns:
        return True
    key = (path, state.st_mtime_ns, state.st_size, digest)
    if key not in _same:
        if local_identity(path, "content")[: 7 + SHORT_DIGITS] != digest:
            return False
        _same.add(key)
    return True


_same: set[tuple[str, int, int, str]] = set()
"""Files with another time of modification that have the listed bytes."""


def in_order(
    function: Callable[[ItemT], MappedT], items: Iterable[ItemT], ahead: int = 2 * _THREADS
) -> Iterator[MappedT]:
    """Apply a function to items in threads; results come in the order of the items.

    Args:
        function: is called once per item.
        items: any number; they are taken a bounded number ahead.
        ahead: items to work on before the first result is taken.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(_THREADS) as pool:
        pending = deque[Future[MappedT]](
            pool.submit(function, item) for item in islice(remaining, ahead)
        )
        try:
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
        finally:
            for future in pending:
                future.cancel()


def chunks(items: Iterable[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    """Split items into lists of at most ``size``."""
    remaining = iter(items)
    while part := list(islice(remaining, size)):
        yield part
