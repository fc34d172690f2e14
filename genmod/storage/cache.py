"""A cache of remote objects on a node's disk, shared by its processes, with an upper size limit.

    FOLDER/SHA256             a complete copy, named by its content
    FOLDER/.pending-SHA256    a copy in progress; has the final size from the start
    FOLDER/.lock              locked while copies are evicted or renamed

A copy is renamed to its final name after its digest was checked. Each process that reads or fetches a copy
locks it (``flock``); the lock ends with the process. So a copy without a lock is not in use, and a pending
file without a lock has lost its writer. Least recently used files are evicted first; files in use stay; files
that do not fit are read by byte range. The folder must be on a local disk.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from genmod.errors import DataError, GenmodError
from genmod.storage.objects import PENDING, read_blocks
from genmod.storage.settings import CacheConfig, settings

_WAIT_S = 120.0
"""How long to wait for another process that fetches the same object, in seconds."""

_POLL_S = 0.02
_LOCK = ".lock"

logger = logging.getLogger(__name__)


def open_copy(url: str, sha256: str, size_bytes: int) -> int | None:
    """A file descriptor of the node's copy of an object, which is fetched first if necessary.

    Close the descriptor to release the copy.

    Args:
        url: of the remote object.
        sha256: of its content, in hex.
        size_bytes: of its content.

    Returns:
        None without a cache, or if the object does not fit next to the files in use. Read the object itself
        then.

    Raises:
        DataError: the object does not match its digest.
        FileNotFoundError: there is no such object.
    """
    config = settings().cache
    if config is None or size_bytes > config.size_bytes:
        return None
    return Cache(config).open(url, sha256, size_bytes)


@dataclass(frozen=True)
class Cache:
    """One folder with copies of objects."""

    config: CacheConfig

    def open(self, url: str, sha256: str, size_bytes: int) -> int | None:
        """As :func:`open_copy`, with this cache."""
        folder = Path(self.config.folder).expanduser()
        end_s = time.monotonic() + _WAIT_S
        try:
            folder.mkdir(parents=True, exist_ok=True)
            while time.monotonic() < end_s:
                handle = _in_use(folder / sha256, size_bytes)
                if handle is not None:
                    return handle
                fetching = self._reserve(folder, sha256, size_bytes)
                if fetching == _FULL:
                    return None
                if fetching != _ANOTHER:
                    return _fetch(url, folder, sha256, fetching)
                time.sleep(_POLL_S)
        except GenmodError:
            raise
        except OSError as error:
            if isinstance(error, FileNotFoundError) and error.filename is None:
                raise  # the object is missing, not the folder
            logger.warning("the cache folder %s is not used: %s", folder, error)
        return None

    def _reserve(self, folder: Path, sha256: str, size_bytes: int) -> int:
        """A locked pending file of the final size; or ``_ANOTHER`` process has the object, or ``_FULL``."""
        pending = folder / f"{PENDING}{sha256}"
        with _locked(folder / _LOCK):
            if (folder / sha256).exists():
                return _ANOTHER
            _sweep(folder)
            if pending.exists():
                return _ANOTHER
            if not _evict(folder, self.config.size_bytes - size_bytes):
                return _FULL
            handle = os.open(pending, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                os.ftruncate(handle, size_bytes)
            except OSError:
                _drop(pending, handle)
                raise
            return handle


_ANOTHER, _FULL = -1, -2


def _in_use(path: Path, size_bytes: int) -> int | None:
    """An open and locked copy, marked as just used; None if there is none."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # it is being evicted, or was renamed just now
        os.close(handle)
        return None
    metadata = os.fstat(handle)
    if metadata.st_nlink == 0:  # evicted between opening and locking
        os.close(handle)
        return None
    if metadata.st_size != size_bytes:  # changed by another program
        _drop(path, handle)
        return None
    os.utime(handle)
    return handle


def _fetch(url: str, folder: Path, sha256: str, handle: int) -> int:
    """Fill a pending file, check it and rename it. The same descriptor then reads it."""
    pending = folder / f"{PENDING}{sha256}"
    digest = hashlib.sha256()
    try:
        offset, size_bytes = 0, os.fstat(handle).st_size
        for block in read_blocks(url):
            if offset + len(block) > size_bytes:
                raise DataError(
                    f"{url} is longer than {size_bytes} bytes, the size in its manifest"
                )
            digest.update(block)
            if os.pwrite(handle, block, offset) != len(block):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            offset += len(block)
        if digest.hexdigest() != sha256 or offset != size_bytes:
            raise DataError(f"{url} does not match its digest: it was changed after it was written")
        os.fsync(handle)
        os.utime(handle)
        with _locked(folder / _LOCK):  # so that an eviction sees exactly one of the two names
            os.replace(pending, folder / sha256)
    except BaseException:
        _drop(pending, handle)
        raise
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


def _evict(folder: Path, limit_bytes: int) -> bool:
    """Evict least recently used copies until the others fit. Requires the folder's lock."""
    files: list[tuple[int, int, Path]] = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            metadata = path.stat()
            if path.name != _LOCK:
                files.append((metadata.st_mtime_ns, metadata.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit_bytes:
            break
        if _remove_unlocked(path):
            total -= size
    return total <= limit_bytes


def _sweep(folder: Path) -> None:
    """Remove pending files of writers that have died. Requires the folder's lock."""
    for path in folder.glob(f"{PENDING}*"):
        _remove_unlocked(path)


def _remove_unlocked(path: Path) -> bool:
    """Remove a file unless a process has locked it; whether it was removed."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    except BlockingIOError:
        return False
    except FileNotFoundError:  # a pending copy that was renamed just now
        return False
    finally:
        os.close(handle)


def _drop(path: Path, handle: int) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
    os.close(handle)


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Lock a file; the lock ends with the process."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        end_s = time.monotonic() + _WAIT_S
        while not _try_lock(handle):
            if time.monotonic() > end_s:
                raise TimeoutError(f"{path} has been locked for {_WAIT_S:g} s")
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
