"""A thread that makes the next items while the caller works on this one."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")

_POLL_S = 0.1
_CLOSE_S = 10.0


class _Ended:
    """Last thing in the queue: why nothing follows."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Prefetch(Generic[T]):
    """Iterates over ``items`` in a thread of its own, at most ``depth`` ahead.

    An exception in ``items`` is raised to whoever asks for the item that it stood for. The thread ends when
    the items do, when :meth:`close` is called, or when nobody holds the iterator any more.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self.waited_s = 0.0
        """Wall time that the caller has waited here so far."""
        self._queue: queue.Queue[T | _Ended] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._ended: _Ended | None = None
        self._thread = threading.Thread(
            target=_fill, args=(items, self._queue, self._stop), name="prefetch", daemon=True
        )
        self._thread.start()
        weakref.finalize(self, self._stop.set)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        began_s = time.monotonic()
        item = self._ended or self._get()
        self.waited_s += time.monotonic() - began_s
        if not isinstance(item, _Ended):
            return item
        self._ended = item
        if item.error is None:
            raise StopIteration
        raise item.error

    def _get(self) -> T | _Ended:
        while not self._stop.is_set():
            try:
                return self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                continue
        return _Ended(None)

    def close(self) -> None:
        """Stop the thread and wait for it. Nothing comes after this."""
        self._stop.set()
        self._ended = self._ended or _Ended(None)
        end_s = time.monotonic() + _CLOSE_S
        while self._thread.is_alive() and time.monotonic() < end_s:
            with suppress(queue.Empty):  # make room, so that the thread looks up at once
                self._queue.get_nowait()
            self._thread.join(timeout=0.002)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _fill(items: Iterator[T], into: queue.Queue[T | _Ended], stop: threading.Event) -> None:
    """Runs in the thread; holds no reference to the Prefetch, so that it can be collected."""
    ended = _Ended(None)
    try:
        for item in items:
            if not _put(item, into, stop):
                return
    except BaseException as error:
        ended = _Ended(error)
    _put(ended, into, stop)


def _put(item: T | _Ended, into: queue.Queue[T | _Ended], stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            into.put(item, timeout=_POLL_S)
        except queue.Full:
            continue
        return True
    return False
