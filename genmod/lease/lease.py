"""Take a lease, renew it, publish under it, give it back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from genmod import storage
from genmod.errors import GenmodError
from genmod.lease.entries import LeaseEntry, LeaseLog
from genmod.lease.holder import LeaseHolder, this_process

LEASES_FOLDER = "leases"
"""Below the recipe's root: a folder for each lease."""

_BEATS = 6
"""Heartbeats in the time of a lease, at least."""

_BEAT_S = 5.0
"""The longest time between heartbeats."""


class LeaseLost(GenmodError):
    """Another process took the lease over, because this one did not renew it in time."""


@dataclass(frozen=True)
class Busy:
    """The lease is held by a process that works."""

    holder: LeaseHolder
    number: int
    progress: str
    """What the holder last said about its progress; may be empty."""


class Lease:
    """A lease that this process holds. Used as a context, it is given back at the end.

    Args:
        root: URL below which results are published.
        log: of the lease.
        entry: by which this process took it.
        position: of that entry: the fencing number.
        progress: returns how far the work is, in a few words.
        on_lost: called once, by another thread, when another process has taken the lease over.
    """

    def __init__(
        self,
        root: str,
        log: LeaseLog,
        entry: LeaseEntry,
        progress: Callable[[], str],
        on_lost: Callable[[], None],
    ) -> None:
        self.number = entry.number
        """The fencing number."""
        self.is_lost = False
        """Whether another process is known to have taken the lease over."""
        self._root, self._log, self._entry, self._next = root, log, entry, entry.number + 1
        self._progress, self._on_lost = progress, on_lost
        self._lock, self._end = threading.RLock(), threading.Event()
        self._is_released = False
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def check(self) -> None:
        """Raise LeaseLost if another process has taken the lease over."""
        with self._lock:
            if self._is_taken_over():
                raise self.loss()

    def create(self, url: str, data: bytes) -> bool:
        """Publish a document, if it does not exist and the lease is still held.

        Args:
            url: of the document. One outside the root is not part of the lease's log: a process that freezes
                between the check and the write can still write it, so its own name must decide who wins.
            data: UTF-8 text.

        Returns:
            Whether this call created it; False if it existed.

        Raises:
            LeaseLost: another process has taken the lease over; nothing is written.
        """
        if not storage.is_below(url, self._root):
            self.check()
            return storage.create(url, data)
        path = url.removeprefix(self._root.rstrip("/")).lstrip("/")
        with self._lock:
            entry = self._entry.model_copy(
                update={"kind": "published", "path": path, "text": data.decode()}
            )
            if self.is_lost or not self._log.append(self._next, entry):
                self.is_lost = True
                raise self.loss()
            self._next += 1
            return storage.create(url, data)

    def release(self) -> None:
        """Give the lease back, unless it is lost. If the store fails, the lease runs out by itself."""
        self._end.set()
        self._thread.join(_BEAT_S)
        with self._lock, suppress(GenmodError, OSError):
            if not (self.is_lost or self._is_released):
                self._is_released = True
                self._log.append(self._next, self._entry.model_copy(update={"kind": "released"}))

    def loss(self) -> LeaseLost:
        """The error of a lease that was taken over: who works now."""
        with suppress(GenmodError, OSError):
            by = self._log.read(self._next).holder
            return LeaseLost(
                f"{self._log.folder}: this process (lease {self.number}) did not renew its lease for "
                f"{self._entry.lease_s:g} s, and {by} works now; nothing more was published; run the same "
                "command again when that one has ended"
            )
        return LeaseLost(
            f"{self._log.folder}: this process (lease {self.number}) holds the lease no longer; run the same "
            "command again"
        )

    def _renew(self) -> None:
        """Write heartbeats until the end; a store that fails for a while may cost the lease, no more."""
        pause_s, beat = min(self._entry.lease_s / _BEATS, _BEAT_S), 0
        while not self._end.wait(pause_s if beat else 0):
            beat += 1
            with suppress(GenmodError, OSError):
                if self._is_taken_over():
                    self._on_lost()
                    return
                self._log.write_heartbeat(self.number, beat, self._progress())

    def _is_taken_over(self) -> bool:
        with self._lock:
            if not self.is_lost and self._log.is_taken(self._next):
                self.is_lost = True
            return self.is_lost


def acquire(
    root: str,
    name: str,
    lease_s: float,
    *,
    progress: Callable[[], str] = str,
    on_lost: Callable[[], None] = lambda: None,
    on_wait: Callable[[LeaseHolder, float], None] = lambda holder, wait_s: None,
    now: Callable[[], float] | None = None,
) -> Lease | Busy:
    """Take a lease, or say who works.

    Returns at once if the lease is free, and after a heartbeat (a sixth of the lease's time, at most 5 s) if
    its holder works. If the holder ended without giving it back, it is taken over: at once if it was a
    process of this machine and user, otherwise after the holder's lease time without a heartbeat.

    Args:
        root: URL below which this process wants to work alone.
        name: of the lease.
        lease_s: in seconds; without a heartbeat for so long, others may take it over.
        progress: returns how far the work is, in a few words; called by another thread.
        on_lost: called once, by another thread, when another process has taken the lease over.
        on_wait: called once with the holder and the seconds left, if two heartbeats of it are missing.
        now: this machine's clock, in seconds; never goes back, and runs while the machine sleeps.

    Raises:
        DataError: the log contains something else.
        StorageError: the store does not enforce create-if-absent.
    """
    log = LeaseLog(storage.join(root, LEASES_FOLDER, name))
    clock = now or _seconds
    watched: tuple[int, int, bytes] | None = None
    watched_s, is_announced = 0.0, False
    while True:
        position, entry = log.newest()
        if entry is None:
            storage.check_writable(log.folder)
        is_free = entry is None or entry.kind == "released" or entry.holder.has_ended()
        if entry is not None and not is_free:
            seen = (entry.number, position, log.heartbeat(entry.number))
            if watched is None or watched[0] != entry.number:
                watched, watched_s = seen, clock()
            elif seen != watched:
                return Busy(entry.holder, entry.number, log.progress(entry.number))
            silent_s = clock() - watched_s
            is_free = silent_s >= entry.lease_s
            if silent_s > 2 * entry.lease_s / _BEATS and not (is_free or is_announced):
                is_announced = True
                on_wait(entry.holder, entry.lease_s - silent_s)
        if is_free:
            own = LeaseEntry(
                kind="acquired", number=position + 1, holder=this_process(), lease_s=lease_s
            )
            if log.append(own.number, own):
                _finish(root, entry)
                return Lease(root, log, own, progress, on_lost)
        else:
            time.sleep(min(max(lease_s, 0.1) / (4 * _BEATS), 0.5))


def _finish(root: str, entry: LeaseEntry | None) -> None:
    """Write the file that the last holder published by its last entry, if it could not."""
    if entry is not None and entry.kind == "published" and entry.path is not None:
        storage.create(storage.join_below(root, entry.path), entry.text.encode())


def _seconds() -> float:
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)
