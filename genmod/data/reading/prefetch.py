"""Prefetching: a thread computes the next items while the caller works on the current one."""

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
    """Last element of the queue, with the error that ended the iteration if there was one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Prefetch(Generic[T]):
    """Iterates over ``items`` in a separate thread, at most ``depth`` items ahead.

    An exception in ``items`` is raised by the ``next`` call for that item. The thread ends with the items,
    on :meth:`close`, or when the iterator is garbage collected.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self.waited_s = 0.0
        """Seconds that the caller has waited for items so far."""
        self._queue: queue.SimpleQueue[T | _Ended] = queue.SimpleQueue()
        self._free_slots = threading.Semaphore(depth)
        self._stop = threading.Event()
        self._ended: _Ended | None = None
        self._thread = threading.Thread(
            target=_fill,
            args=(items, self._queue, self._free_slots, self._stop),
            name="prefetch",
            daemon=True,
        )
        self._thread.start()
        weakref.finalize(self, self._stop.set)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        start_s = time.monotonic()
        item = self._ended or self._get()
        self.waited_s += time.monotonic() - start_s
        if not isinstance(item, _Ended):
            self._free_slots.release()
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
        """Stop the thread and wait for it; the iteration ends."""
        self._stop.set()
        self._ended = self._ended or _Ended(None)
        self._free_slots.release()  # wakes the thread
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
    output: queue.SimpleQueue[T | _Ended],
    free_slots: threading.Semaphore,
    stop: threading.Event,
) -> None:
    """Main function of the thread. It has no reference to the Prefetch, which can thus be collected."""
    try:
        while _acquire(free_slots, stop):
            output.put(next(items))
    except StopIteration:
        output.put(_Ended(None))
    except BaseException as error:
        output.put(_Ended(error))


def _acquire(free_slots: threading.Semaphore, stop: threading.Event) -> bool:
    """Wait for a free slot; False once ``stop`` is set."""
    while not stop.is_set():
        if free_slots.acquire(timeout=_POLL_S):
            return not stop.is_set()
    return False
