"""Copies of remote objects on a node's own disk, shared by its processes, never larger than a limit.

    FOLDER/SHA256             a whole copy, named by its content
    FOLDER/.pending-SHA256    a copy that is being fetched, as long as the whole from the start
    FOLDER/.lock              held while room is made or a copy gets its name

A copy appears by a rename, after its digest has been checked. Whoever reads or fetches one holds a lock
(``flock``) on it, which ends with the process however that ends; so what is not locked is not in use, and a
pending file that is not locked has lost its writer. The folder must be on a local disk.
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

WAIT_S = 120.0
"""How long to wait for another process that fetches the same object."""

_POLL_S = 0.02
_LOCK = ".lock"

logger = logging.getLogger(__name__)


def open_copy(url: str, sha256: str, size_bytes: int) -> int | None:
    """A descriptor of the node's copy of an object, fetched if need be; close it to let the copy go.

    Args:
        url: of the object, remote.
        sha256: of its content, in hex.
        size_bytes: of its content.

    Returns:
        None if there is no cache, or no room in it beside what is in use: read the object itself then.

    Raises:
        DataError: the object does not fit its digest.
        FileNotFoundError: the object is not there.
    """
    config = settings().cache
    if config is None or size_bytes > config.size_bytes:
        return None
    return Cache(config).open(url, sha256, size_bytes)


@dataclass(frozen=True)
class Cache:
    """One folder of copies."""

    config: CacheConfig

    def open(self, url: str, sha256: str, size_bytes: int) -> int | None:
        """As :func:`open_copy`."""
        folder = Path(self.config.folder).expanduser()
        end_s = time.monotonic() + WAIT_S
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
                raise  # of the object, not of the folder
            logger.warning("the cache %s is passed by: %s", folder, error)
        return None

    def _reserve(self, folder: Path, sha256: str, size_bytes: int) -> int:
        """A locked pending file of full size; ``_ANOTHER`` has the object at hand; the cache is ``_FULL``."""
        pending = folder / f"{PENDING}{sha256}"
        with _locked(folder / _LOCK):
            if (folder / sha256).exists():
                return _ANOTHER
            _sweep(folder)
            if pending.exists():
                return _ANOTHER
            if not _make_room(folder, self.config.size_bytes - size_bytes):
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
    """An open copy that nobody takes away, marked as just used; None if there is none."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # it is just being taken away, or has just been named
        os.close(handle)
        return None
    metadata = os.fstat(handle)
    if metadata.st_nlink == 0:  # taken away between opening and locking
        os.close(handle)
        return None
    if metadata.st_size != size_bytes:  # somebody else has touched it
        _drop(path, handle)
        return None
    os.utime(handle)
    return handle


def _fetch(url: str, folder: Path, sha256: str, handle: int) -> int:
    """Fill a pending file, check it, give it its name; the same descriptor then reads it."""
    pending = folder / f"{PENDING}{sha256}"
    digest = hashlib.sha256()
    try:
        offset, size_bytes = 0, os.fstat(handle).st_size
        for block in read_blocks(url):
            if offset + len(block) > size_bytes:
                raise DataError(f"{url} is longer than its {size_bytes} bytes")
            digest.update(block)
            if os.pwrite(handle, block, offset) != len(block):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            offset += len(block)
        if digest.hexdigest() != sha256 or offset != size_bytes:
            raise DataError(f"{url} does not fit its digest")
        os.fsync(handle)
        os.utime(handle)
        with _locked(folder / _LOCK):  # whoever counts what is there sees one of the two names
            os.replace(pending, folder / sha256)
    except BaseException:
        _drop(pending, handle)
        raise
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


def _make_room(folder: Path, limit_bytes: int) -> bool:
    """Take copies away, oldest use first, until what is left fits. The folder's lock is held."""
    there: list[tuple[int, int, Path]] = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            metadata = path.stat()
            if path.name != _LOCK:
                there.append((metadata.st_mtime_ns, metadata.st_size, path))
    total = sum(size for _, size, _ in there)
    for _, size, path in sorted(there):
        if total <= limit_bytes:
            break
        if _take_away(path):
            total -= size
    return total <= limit_bytes


def _sweep(folder: Path) -> None:
    """Remove what writers have left that are no more. The folder's lock is held."""
    for path in folder.glob(f"{PENDING}*"):
        _take_away(path)


def _take_away(path: Path) -> bool:
    """Remove a file that nobody has locked."""
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
    except FileNotFoundError:  # a pending copy that has just been named
        return False
    finally:
        os.close(handle)


def _drop(path: Path, handle: int) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
    os.close(handle)


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Hold a lock file; it ends with the process."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        end_s = time.monotonic() + WAIT_S
        while not _locks(handle):
            if time.monotonic() > end_s:
                raise TimeoutError(f"{path} has been held for {WAIT_S:g} s")
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(handle)


def _locks(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
