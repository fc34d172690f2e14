"""Tries the root's store from one machine: written, read, exclusive, how fast, and its clock."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress

from cluster.doctor.facts import StoreFacts
from genmod import storage
from genmod.errors import GenmodError, StorageError
from genmod.storage.objects import PENDING

_SPEED_BYTES = 8 << 20
"""Size of the object that is written and read to measure speed."""

_RETRY_S = 5.0
"""How long a store that does not respond is tried, in seconds."""

_REQUEST_S = 10.0
"""Timeout of one request, in seconds."""

NOT_EXCLUSIVE = "create-if-absent"
"""Part of the error of a store that lets two writers win."""


@contextmanager
def driver_file(root: str) -> Generator[tuple[str, bytes]]:
    """A file of the driver below the root, until the body ends: its URL and content.

    Raises:
        GenmodError, OSError: it cannot be written.
    """
    url = storage.join(root, f"{PENDING}doctor-{uuid.uuid4().hex}")
    content = uuid.uuid4().bytes
    storage.create(url, content)
    try:
        yield url, content
    finally:
        with suppress(GenmodError, OSError):
            storage.remove(url)


@contextmanager
def short_retries() -> Generator[None]:
    """Give up on a store within seconds, instead of after the recipe's ``storage.retry_timeout_s``."""
    before = storage.settings()
    storage.configure(
        before.model_copy(
            update={
                "retry_timeout_s": min(before.retry_timeout_s, _RETRY_S),
                "request_timeout_s": min(before.request_timeout_s, _REQUEST_S),
                "read_timeout_s": min(before.read_timeout_s, _RETRY_S),
            }
        )
    )
    try:
        yield
    finally:
        storage.configure(before)


def sees(url: str, content: bytes) -> StoreFacts:
    """Whether this machine reads what the driver wrote; nothing is written."""
    try:
        return StoreFacts(sees_driver=storage.read_bytes(url) == content)
    except FileNotFoundError:
        return StoreFacts(sees_driver=False)
    except (GenmodError, OSError, ValueError) as error:
        return StoreFacts(error=_line(error), sees_driver=False)


def measure_store(root: str, url: str, content: bytes) -> StoreFacts:
    """Try the root from this machine.

    Args:
        root: URL of the folder.
        url: of the driver's file.
        content: of the driver's file.
    """
    seen = sees(url, content)
    if not seen.sees_driver:
        return seen
    try:
        storage.check_writable(root)
        write_mb_s, read_mb_s, offset_s = _speed(root)
    except (GenmodError, OSError, ValueError) as error:
        is_shared = isinstance(error, StorageError) and NOT_EXCLUSIVE in str(error)
        return StoreFacts(error=_line(error), is_exclusive=not is_shared)
    return StoreFacts(write_mb_s=write_mb_s, read_mb_s=read_mb_s, offset_s=offset_s)


def _speed(root: str) -> tuple[float, float, float | None]:
    """MB/s of writing and of reading, and this machine's clock minus the store's in seconds."""
    url = storage.join(root, f"{PENDING}doctor-{uuid.uuid4().hex}")
    data = os.urandom(_SPEED_BYTES)
    start, clock_s = time.perf_counter(), time.time()
    storage.write_bytes(url, data)
    write_s = time.perf_counter() - start
    try:
        written_s = storage.written_s(url)
        offset_s = None if written_s is None else clock_s + write_s - written_s
        start = time.perf_counter()
        if storage.read_bytes(url) != data:
            raise StorageError(f"{root} returns other bytes than were written; replace the store")
        read_s = time.perf_counter() - start
    finally:
        storage.remove(url)
    megabytes = _SPEED_BYTES / 1e6
    return round(megabytes / write_s, 1), round(megabytes / read_s, 1), offset_s


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
