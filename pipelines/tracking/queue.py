"""Runs calls to a slow or unreachable service in one background thread, so that the caller never waits.

A call that fails is retried after a pause, until it succeeds or the queue is closed. Calls must be
idempotent, because failed ones are retried. Only the first failure is logged.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class _Item:
    call: Callable[[], Any]
    future: Future[Any] | None = None
    """Set if a caller waits: they get the error, and the call is not retried."""


class BackgroundQueue:
    """A queue of calls and one daemon thread that starts with the first call.

    Args:
        name: of the thread.
        is_permanent: whether a retry would meet the same error; such a call is dropped.
        warn: receives the first error, once.
        retry_s: pause before a failed call is retried.
    """

    def __init__(
        self,
        name: str,
        is_permanent: Callable[[Exception], bool],
        warn: Callable[[Exception], None],
        retry_s: float = 15.0,
    ) -> None:
        self._name = name
        self._is_permanent = is_permanent
        self._warn = warn
        self._retry_s = retry_s
        self._items: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._failing = False
        self._gave_up = False
        self._retry_now = False
        self._attempts = 0
        self._warned = False

    def submit(self, call: Callable[[], Any]) -> None:
        """Add a call. Returns at once; after :meth:`close` it does nothing."""
        self._push(_Item(call))

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

    def close(self, timeout_s: float) -> bool:
        """Wait until every call is done; give up when one fails or takes longer than ``timeout_s``.

        Returns:
            Whether all calls are done.
        """
        with self._changed:
            self._closing = self._retry_now = True
            self._changed.notify_all()
            while self._items and not self._gave_up:
                attempts = self._attempts
                self._changed.wait_for(lambda seen=attempts: self._attempts != seen, timeout_s)
                if self._attempts == attempts:
                    self._warn_once(TimeoutError(f"no response in {timeout_s:g} s"))
                    break
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
        self._items.popleft()
        return True

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
