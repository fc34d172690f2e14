"""A thread that makes the next items while the caller works on this one."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Iterator
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
    """Iterates over ``items`` in a thread of its own, at most ``depth`` ahead with the one it is making.

    An exception in ``items`` is raised to whoever asks for the item that it stood for. The thread ends when
    the items do, when :meth:`close` is called, or when nobody holds the iterator any more.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self.waited_s = 0.0
        """Wall time that the caller has waited here so far."""
        self._queue: queue.SimpleQueue[T | _Ended] = queue.SimpleQueue()
        self._room = threading.Semaphore(depth)
        self._stop = threading.Event()
        self._ended: _Ended | None = None
        self._thread = threading.Thread(
            target=_fill,
            args=(items, self._queue, self._room, self._stop),
            name="prefetch",
            daemon=True,
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
            self._room.release()
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
        self._room.release()  # so that the thread looks up at once
        self._thread.join(_CLOSE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _fill(
    items: Iterator[T],
    into: queue.SimpleQueue[T | _Ended],
    room: threading.Semaphore,
    stop: threading.Event,
) -> None:
    """Runs in the thread; holds no reference to the Prefetch, so that it can be collected."""
    try:
        while _has_room(room, stop):
            into.put(next(items))
    except StopIteration:
        into.put(_Ended(None))
    except BaseException as error:
        into.put(_Ended(error))


def _has_room(room: threading.Semaphore, stop: threading.Event) -> bool:
    while not stop.is_set():
        if room.acquire(timeout=_POLL_S):
            return not stop.is_set()
    return False
