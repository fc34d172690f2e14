"""Calls to a service that may be slow or away, made in order by one thread, so that nobody waits for it.

A call that fails is made again, after a pause, until it succeeds or the outbox is closed. So calls must
bear being made twice. A person hears of it once.
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
    answer: Future[Any] | None = None
    """Of a caller who waits: an error goes to them and the call is not made again."""


class BackgroundQueue:
    """One queue, one daemon thread that starts with the first call.

    Args:
        name: of the thread.
        is_permanent: whether an error would come again; such a call is dropped.
        warn: told of the first error, once.
        retry_s: pause before a call that failed is made again.
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
        self._hurry = False
        self._attempts = 0
        self._warned = False

    def put(self, call: Callable[[], Any]) -> None:
        """Make a call some time. Returns at once; after :meth:`close` it does nothing."""
        self._push(_Item(call))

    def ask(self, call: Callable[[], T], deadline_s: float) -> T:
        """Make a call after all that were put before it and wait for its answer.

        Raises:
            Exception: what the call raised, or what keeps those before it from being made.
            TimeoutError: neither came in time.
        """
        item = _Item(call, Future())
        self._push(item)
        assert item.answer is not None
        return item.answer.result(deadline_s)

    def close(self, stall_s: float) -> bool:
        """Wait until every call is made; give up when one fails, or takes longer than ``stall_s``.

        Returns:
            Whether all were made.
        """
        with self._changed:
            self._closing = self._hurry = True
            self._changed.notify_all()
            while self._items and not self._gave_up:
                attempts = self._attempts
                self._changed.wait_for(lambda seen=attempts: self._attempts != seen, stall_s)
                if self._attempts == attempts:
                    self._warn_once(TimeoutError(f"no answer in {stall_s:g} s"))
                    break
            return not self._items

    def _push(self, item: _Item) -> None:
        with self._changed:
            if self._closing:
                if item.answer is not None:
                    item.answer.set_exception(RuntimeError("the outbox is closed"))
                return
            self._items.append(item)
            if item.answer is not None and self._failing:
                self._hurry = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._closing)
                if not self._items:
                    return
                item = self._items[0]
            error = _make(item)
            with self._changed:
                self._attempts += 1
                self._failing = not self._settle(item, error)
                if self._failing and self._closing:
                    self._gave_up = True
                self._changed.notify_all()
                if self._gave_up:
                    return
                if self._failing:
                    self._changed.wait_for(lambda: self._hurry, self._retry_s)
                    self._hurry = False

    def _settle(self, item: _Item, error: Exception | None) -> bool:
        """Whether an item is done with. The lock is held."""
        if error is not None and item.answer is None:
            self._warn_once(error)
            if not self._is_permanent(error):
                self._refuse_waiting(error)
                return False
        self._items.popleft()
        return True

    def _refuse_waiting(self, error: Exception) -> None:
        for item in [i for i in self._items if i.answer is not None]:
            self._items.remove(item)
            assert item.answer is not None
            item.answer.set_exception(error)

    def _warn_once(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            self._warn(error)


def _make(item: _Item) -> Exception | None:
    """Make a call; an error is returned, and goes to the caller if one waits."""
    try:
        result = item.call()
    except Exception as error:
        if item.answer is not None:
            item.answer.set_exception(error)
        return error
    if item.answer is not None:
        item.answer.set_result(result)
    return None
