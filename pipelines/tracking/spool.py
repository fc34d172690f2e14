"""The spool: what a command logs to MLflow, kept next to the run until MLflow has it.

Below a local root a record is a line of ``ROOT/spool/ID.jsonl``, written before it is sent, so it survives a
kill at any time; a line that was cut off is skipped. The file is removed when MLflow has everything. Below a
remote root records that MLflow did not accept become objects ``ROOT/spool/ID-N.jsonl``, each created only if
absent. :mod:`pipelines.tracking.replay` sends what is left.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from genmod import storage
from genmod.documents import parse_document
from genmod.errors import DataError, GenmodError
from genmod.storage.objects import PENDING
from pipelines.tracking.records import ClosedRecord, SpoolLine, SpoolRecord
from pipelines.tracking.redact import redact

SPOOL_FOLDER = "spool"
"""Folder of the spools below a root."""

_LOCK = "lock"
_FILE = re.compile(r"([0-9]{8}T[0-9]{6}-[0-9a-f]{12})(-[0-9]{6})?\.jsonl")
_LINE_BYTES = 16 << 20
"""The longest line that is read."""

_QUIET_S = 600.0
"""A remote spool to which nothing was added for so long has no writer any more."""


class SpoolBusy(GenmodError, ConnectionError):
    """Another command logs to MLflow below the same root, or sends what was not logged."""


class Spool:
    """The spool of one command. Methods may be called from any thread.

    Args:
        root: URL of the recipe's root.
    """

    def __init__(self, root: str) -> None:
        self.folder = storage.join(root, SPOOL_FOLDER)
        self.is_local = storage.scheme_of(self.folder) in ("", "file")
        """Whether records are written at once; otherwise :meth:`flush` does."""
        self._id = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:12]}"
        self._mutex = Lock()
        self._handle: int | None = None
        self._torn = False
        self._waiting: list[bytes] = []
        self._parts = 0
        self._closed = False
        self._lock: int | None = None

    def append(self, record: SpoolRecord) -> None:
        """Add a record. OSError if it cannot be written. Does nothing after :meth:`close`."""
        line = redact(record.model_dump_json()).encode() + b"\n"
        with self._mutex:
            if self._closed:
                return
            if self.is_local:
                self._write(line)
            else:
                self._waiting.append(line)

    def flush(self) -> None:
        """Write records that wait, for a remote root. OSError or GenmodError if the store refuses them."""
        with self._mutex:
            if self._waiting:
                name = f"{self._id}-{self._parts + 1:06d}.jsonl"
                storage.create(storage.join(self.folder, name), b"".join(self._waiting))
                self._parts += 1
                self._waiting.clear()

    def enter(self) -> None:
        """Hold off a replay below this root, until :meth:`close`. SpoolBusy if one is under way."""
        with self._mutex:
            if self._closed:
                raise SpoolBusy("the command has ended")
            if not self.is_local or self._lock is not None:
                return
            try:
                self._lock = _locked(_path(self.folder), fcntl.LOCK_SH)
            except SpoolBusy:
                raise
            except OSError:  # a file system that is full, or without locks: MLflow works without it
                return

    def close(self, sent: bool) -> None:
        """End the spool; remove it if everything was sent."""
        if not sent and not self.is_local and (self._waiting or self._parts):
            self.append(ClosedRecord())
            self.flush()
        with self._mutex:
            self._closed = True
            if sent:
                self._remove()
            for handle in (self._handle, self._lock):
                if handle is not None:
                    os.close(handle)
            self._handle = self._lock = None
        if sent and self.is_local:
            _remove_folder(_path(self.folder))

    def _write(self, line: bytes) -> None:
        if self._handle is None:
            self._handle = _create(_path(self.folder), f"{self._id}.jsonl")
        if self._torn:  # a full disk cut off the line before
            line = b"\n" + line
        self._torn = True
        if os.write(self._handle, line) < len(line):
            raise OSError(f"{self.folder}: no space left")
        self._torn = False

    def _remove(self) -> None:
        if self._handle is not None:
            with suppress(FileNotFoundError):
                os.unlink(_path(self.folder) / f"{self._id}.jsonl")
        for part in range(1, self._parts + 1):
            storage.remove(storage.join(self.folder, f"{self._id}-{part:06d}.jsonl"))


class StoredSpool:
    """A spool that a command has left.

    Args:
        urls: of its files, in order.
    """

    def __init__(self, urls: list[str]) -> None:
        self.urls = urls
        self.unreadable = 0
        """Lines that were cut off, or are no records."""

    def records(self) -> Iterator[SpoolRecord]:
        """All records in order. Lines that are none are counted and skipped."""
        self.unreadable = 0
        for url in self.urls:
            for line in _lines(url):
                try:
                    yield parse_document(SpoolLine, line, "a record", url, "").root
                except DataError:
                    self.unreadable += 1

    def is_quiet(self) -> bool:
        """Whether no command writes to it any more."""
        if len(self.urls) == 1 and not _is_part(self.urls[0]):
            with open(storage.open_regular(str(_path(self.urls[0]))), "rb") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
            return True
        if any(isinstance(record, ClosedRecord) for record in self.records()):
            return True
        return storage.age_s(self.urls[-1]) > _QUIET_S

    def remove(self) -> None:
        """Remove its files. The last goes first: without the others it would have no runs."""
        for url in reversed(self.urls):
            storage.remove(url)


def stored_spools(root: str) -> list[StoredSpool]:
    """The spools below a root, oldest first."""
    folder = storage.join(root, SPOOL_FOLDER)
    groups: dict[str, list[str]] = {}
    for name in storage.list_names(folder):
        if match := _FILE.fullmatch(name):
            groups.setdefault(match[1], []).append(storage.join(folder, name))
    return [StoredSpool(urls) for _, urls in sorted(groups.items())]


@contextmanager
def exclusive(root: str) -> Generator[None]:
    """Hold off commands that log below a local root. SpoolBusy if one does."""
    folder = storage.join(root, SPOOL_FOLDER)
    if storage.scheme_of(folder) not in ("", "file"):
        yield
        return
    handle = _locked(_path(folder), fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)
        _remove_folder(_path(folder))


def _path(url: str) -> Path:
    return Path(url.removeprefix("file://"))


def _is_part(url: str) -> bool:
    match = _FILE.fullmatch(url.rsplit("/", maxsplit=1)[-1])
    return match is not None and match[2] is not None


def _create(folder: Path, name: str) -> int:
    """Create and lock a file for this user alone; it gets its name when it is locked."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    pending = folder / f"{PENDING}{uuid.uuid4().hex}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    handle = os.open(pending, flags, 0o600)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.rename(pending, folder / name)
    return handle


def _locked(folder: Path, mode: int) -> int:
    """The lock of a folder of spools. SpoolBusy if another process holds it otherwise."""
    while True:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # another process removed the folder meanwhile
        try:
            fcntl.flock(handle, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise SpoolBusy(
                f"another genmod command logs or replays in {folder}; run this one again when it has ended"
            ) from None
        with suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == os.stat(folder / _LOCK).st_ino:
                return handle
        os.close(handle)  # another process removed the file meanwhile


def _remove_folder(folder: Path) -> None:
    """Remove an empty folder with its lock, unless a process holds it."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - {_LOCK}:
        return
    with suppress(SpoolBusy, OSError):
        handle = _locked(folder, fcntl.LOCK_EX)
        with suppress(OSError):
            os.unlink(folder / _LOCK)
            os.rmdir(folder)
        os.close(handle)


def _lines(url: str) -> Iterator[bytes]:
    """Lines of a file; of one without an end, nothing. A line that is too long is yielded cut."""
    rest = b""
    for block in storage.read_blocks(url):
        *lines, rest = (rest + block).split(b"\n")
        yield from (line for line in lines if line)
        if len(rest) > _LINE_BYTES:
            rest = b"{"
    if rest:
        yield rest[:1]  # cut off: no record
