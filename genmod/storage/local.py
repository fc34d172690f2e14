"""Local files: only regular files are read, and never outside the folder that a manifest is in.

A name may lead to a device, a pipe or a socket, directly or through a link. Reading one could wait forever,
exhaust memory or act on hardware. All reads of local files go through :func:`open_regular`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from genmod.errors import DataError, StorageError, sanitize

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_KINDS = (
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a link that cannot be followed"),
)

_MORE_BYTES = 1 << 16
"""How much to read at once of a file that is longer than its size says."""


class LocalFiles(LocalFileSystem):
    """fsspec's local files, but only regular ones are opened for reading."""

    def _open(self, path: Any, mode: str = "rb", block_size: Any = None, **options: Any) -> Any:
        if mode == "rb":
            return os.fdopen(open_regular(str(path)), "rb")
        return super()._open(path, mode, block_size, **options)


def open_regular(path: str) -> int:
    """Open a local file for reading, and return its descriptor. Links are followed.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        StorageError: it is a device, a pipe or a socket.
    """
    _check_regular(os.stat(path), path)  # before it is opened, since some devices act when opened
    return _checked(os.open(path, _FLAGS), path)


def open_below_folder(root: str, path: str) -> int:
    """As :func:`open_regular`, for a path from a manifest in the folder ``root``.

    The folder itself may be reached through links; links below it may lead to files below it.

    Raises:
        StorageError: a link leads out of the folder, or it is not a regular file.
    """
    full = os.path.join(root, path)
    real_root, real_path = os.path.realpath(root), os.path.realpath(full)
    if os.path.commonpath((real_root, real_path)) != real_root:
        raise StorageError(
            f"{full} is a link to {sanitize(real_path)}, outside its folder; replace it by a copy"
        )
    parts = os.path.relpath(real_path, real_root).split(os.sep)
    # Links are resolved by now: follow none, in case another process replaces a folder by a link.
    folder = os.open(real_root, _FOLDER_FLAGS)
    try:
        for part in parts[:-1]:
            below = os.open(part, _FOLDER_FLAGS, dir_fd=folder)
            os.close(folder)
            folder = below
        _check_regular(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False), full)
        return _checked(os.open(parts[-1], _FLAGS | os.O_NOFOLLOW, dir_fd=folder), full)
    finally:
        os.close(folder)


def read_whole(handle: int, url: str, limit_bytes: int) -> bytes:
    """All bytes of an open file, which is closed.

    Raises:
        DataError: it is longer than the limit, also if it grows meanwhile.
    """
    with open(handle, "rb", buffering=0) as stream:
        size_bytes = os.fstat(handle).st_size
        if size_bytes > limit_bytes:
            raise too_long(url, limit_bytes)
        blocks, read_bytes = list[bytes](), 0
        while block := stream.read(max(size_bytes + 1 - read_bytes, _MORE_BYTES)):
            blocks.append(block)
            read_bytes += len(block)
            if read_bytes > limit_bytes:
                raise too_long(url, limit_bytes)
    return b"".join(blocks)


def ranges_of_file(path: str, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
    """Byte ranges of a local file; shorter where it ends."""
    handle = open_regular(path)
    try:
        end = os.fstat(handle).st_size
        spans = zip(offsets, lengths, strict=True)
        return [os.pread(handle, max(0, min(n, end - o)), o) for o, n in spans]
    finally:
        os.close(handle)


def blocks_of_file(path: str, block_bytes: int) -> Iterator[bytes]:
    """A local file in blocks, the last one shorter."""
    with open(open_regular(path), "rb", buffering=0) as stream:
        block = None
        while block is None or len(block) == block_bytes:
            block = stream.read(block_bytes)
            yield block


def too_long(url: str, limit_bytes: int) -> DataError:
    """The error for an object with more bytes than a reader accepts."""
    return DataError(f"{url} is longer than {limit_bytes:,} bytes, the most that is read of it")


def _checked(handle: int, path: str) -> int:
    try:
        _check_regular(os.fstat(handle), path)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _check_regular(metadata: os.stat_result, path: str) -> None:
    mode = metadata.st_mode
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "not a file")
    raise StorageError(f"{path} is {kind}, expected a regular file; replace or remove it")
