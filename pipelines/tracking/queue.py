"""Runs calls to a slow or unreachable service in one background thread, so that the caller never waits.

A call that fails is retried after a pause, until it succeeds or the queue is closed. Calls must be
idempotent, because failed ones are retried. Only the first failure is logged.

A call may come with a function that saves it elsewhere. That is called once: when this call or one before it
fails, when the queue is full, or when the queue is closed before the call was done.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

SaveCall = Callable[[], None]
"""Saves a call that the queue may not finish."""


@dataclass
class _Item:
    call: Callable[[], Any]
    future: Future[Any] | None = None
    """Set if a caller waits: they get the error, and the call is not retried."""
    save: SaveCall | None = None
    """None once it was called."""


class QueueFull(RuntimeError):
    """More calls wait than the queue holds; further ones are only saved."""


class BackgroundQueue:
    """A queue of calls and one daemon thread that starts with the first call.

    Args:
        name: of the thread.
        is_permanent: whether a retry would meet the same error; such a call is dropped.
        warn: receives the first error, once.
        retry_s: pause before a failed call is retried.
        save: receives the functions that save calls, in order; it must not raise.
        max_calls: the most calls that wait.
    """

    def __init__(
        self,
        name: str,
        is_permanent: Callable[[Exception], bool],
        warn: Callable[[Exception], None],
        retry_s: float = 15.0,
        *,
        save: Callable[[Sequence[SaveCall]], None] = lambda saves: None,
        max_calls: int = 10_000,
    ) -> None:
        self._name = name
        self._is_permanent = is_permanent
        self._warn = warn
        self._retry_s = retry_s
        self._save = save
        self._max_calls = max_calls
        self._dropped = False
        self._items: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._failing = False
        self._gave_up = False
        self._retry_now = False
        self._attempts = 0
        self._warned = False

    @property
    def waiting(self) -> int:
        """Calls that were not made yet."""
        return len(self._items)

    @property
    def is_full(self) -> bool:
        """Whether further calls are only saved."""
        return len(self._items) >= self._max_calls

    @property
    def is_complete(self) -> bool:
        """Whether every call so far was done; none failed for good."""
        return not self._items and not self._dropped

    def submit(self, call: Callable[[], Any], save: SaveCall | None = None) -> None:
        """Add a call. Returns at once; after :meth:`close` it does nothing."""
        if self.is_full:
            self._dropped = True
            self._warn_once(QueueFull(f"{self._max_calls:,} calls wait"))
            self._save([] if save is None else [save])
        else:
            self._push(_Item(call, save=save))

    def run(self, call: Callable[[], T], timeout_s: float) -> T:
        """Run a call after all earlier ones and return its result.

        Raises:
            Exception: the error of the call, or the one that keeps failing before it.
            TimeoutError: no result in time.
        """
        item = _Item(call, Future())
        self._push(item)
        assert item.future is not None
        return item.future.result(timeout_s)

    def close(self, timeout_s: float, total_s: float | None = None) -> bool:
        """Wait until every call is done; give up when one fails or takes too long, and save the rest.

        Args:
            timeout_s: for each call.
            total_s: for all calls; None for no limit.

        Returns:
            Whether all calls are done.
        """
        done = self._drain(timeout_s, total_s)
        self._save_waiting()
        return done

    def _drain(self, timeout_s: float, total_s: float | None) -> bool:
        """Wait for all calls. Whether they are done."""
        end_s = None if total_s is None else time.monotonic() + total_s
        with self._changed:
            self._closing = self._retry_now = True
            self._changed.notify_all()
            while self._items and not self._gave_up:
                attempts = self._attempts
                left_s = timeout_s if end_s is None else min(timeout_s, end_s - time.monotonic())
                self._changed.wait_for(lambda seen=attempts: self._attempts != seen, max(left_s, 0))
                if self._attempts == attempts:
                    limit_s = timeout_s if left_s == timeout_s else total_s
                    self._warn_once(TimeoutError(f"no response in {limit_s:g} s"))
                    self._gave_up = True
            return not self._items

    def _push(self, item: _Item) -> None:
        with self._changed:
            if self._closing:
                if item.future is not None:
                    item.future.set_exception(RuntimeError("the queue is closed"))
                return
            self._items.append(item)
            if item.future is not None and self._failing:
                self._retry_now = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _work(self) -> None:
        """The thread: run the first item until it is done, then the next one."""
        while True:
            # Wait for an item, and run it without the lock.
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._closing)
                if not self._items:
                    return
                item = self._items[0]
            error = _run(item)
            if error is not None and item.future is None:
                self._save_waiting()
            # Record the result; after a failure pause before the next attempt.
            with self._changed:
                self._attempts += 1
                self._failing = not self._finish(item, error)
                if self._failing and self._closing:
                    self._gave_up = True
                self._changed.notify_all()
                if self._gave_up:
                    return
                if self._failing:
                    self._changed.wait_for(lambda: self._retry_now, self._retry_s)
                    self._retry_now = False

    def _finish(self, item: _Item, error: Exception | None) -> bool:
        """Remove an item unless it must be retried. Returns whether it is removed. The lock is held."""
        if error is not None and item.future is None:
            self._warn_once(error)
            if not self._is_permanent(error):
                self._fail_waiting(error)
                return False
            self._dropped = True
        self._items.popleft()
        return True

    def _save_waiting(self) -> None:
        """Save all calls that are not done, and were not saved before."""
        with self._changed:
            waiting = [item for item in self._items if item.save is not None]
            saves = [item.save for item in waiting if item.save is not None]
            for item in waiting:
                item.save = None
        if saves:
            self._save(saves)

    def _fail_waiting(self, error: Exception) -> None:
        """Pass an error to all callers that wait behind the failing call."""
        for item in [i for i in self._items if i.future is not None]:
            self._items.remove(item)
            assert item.future is not None
            item.future.set_exception(error)

    def _warn_once(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            self._warn(error)


def _run(item: _Item) -> Exception | None:
    """Run a call. Its error is returned, and passed to the caller if one waits."""
    try:
        result = item.call()
    except Exception as error:
        if item.future is not None:
            item.future.set_exception(error)
        return error
    if item.future is not None:
        item.future.set_result(result)
    return None
