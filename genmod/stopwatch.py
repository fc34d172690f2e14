"""Where the time of a piece of work goes: seconds by part, of the threads that do it.

A part inside another one is not counted as the outer one, so the parts of one thread add up to its time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

MODEL, ENCODE, READ, WRITE = "model", "encode", "read", "write"
"""Parts of sampling and scoring: calls of the model; images and tables; input; files of the output."""

FILTER, FIT, START, WAIT = "filter", "fit", "start", "wait"
"""Filters of samples; a fit before scoring; loading a model; waiting for another thread's images."""


class Stopwatch:
    """Adds up the seconds of each part of one piece of work.

    Args:
        now: a clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, part: str, seconds: float) -> None:
        """Add seconds to a part. Any thread may call it."""
        with self._lock:
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    @contextmanager
    def running(self, part: str) -> Generator[None]:
        """Time this thread inside the block, as this part as long as no other one is named."""
        outer, _thread.running = _running(), _Running(self, part)
        try:
            yield
        finally:
            _thread.running.switch(part)
            _thread.running = outer


class _Running:
    """A stopwatch that runs on a thread."""

    def __init__(self, watch: Stopwatch, part: str) -> None:
        self.watch, self.part, self._since_s = watch, part, watch.now()

    def switch(self, part: str) -> str:
        """Count the time until now, switch to another part, and return the part until now."""
        now_s, before = self.watch.now(), self.part
        self.watch.add(before, now_s - self._since_s)
        self.part, self._since_s = part, now_s
        return before


_thread = threading.local()


def _running() -> _Running | None:
    return getattr(_thread, "running", None)


def current() -> Stopwatch | None:
    """The stopwatch that runs on this thread."""
    running = _running()
    return None if running is None else running.watch


@contextmanager
def measured(part: str) -> Generator[None]:
    """Count the time of the block as a part. Does nothing if no stopwatch runs on this thread."""
    running = _running()
    if running is None:
        yield
        return
    before = running.switch(part)
    try:
        yield
    finally:
        running.switch(before)


def measured_items(items: Iterable[T], part: str, watch: Stopwatch | None = None) -> Iterator[T]:
    """Yield items; the time until each of them counts as a part.

    Args:
        items: that take time.
        part: of the work.
        watch: another thread's stopwatch; that of this thread if not given.
    """
    iterator = iter(items)
    while True:
        with measured(part) if watch is None else watch.running(part):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item
