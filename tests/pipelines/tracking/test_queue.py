"""The background queue under calls that fail or hang: no call is lost, and every wait has an end."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from pipelines.tracking.queue import BackgroundQueue, QueueFull, SaveCall


class FailingService:
    """Fails the first ``times`` calls, then works."""

    def __init__(self, times: int, error: Exception) -> None:
        self.failures, self.error = times, error
        self.done: list[int] = []

    def call(self, number: int):
        def call():
            if self.failures > 0:
                self.failures -= 1
                raise self.error
            self.done.append(number)
            return number

        return call


def make_queue(warnings: list[Exception], retry_s: float = 0.01, **options) -> BackgroundQueue:
    return BackgroundQueue(
        "test", lambda error: isinstance(error, ValueError), warnings.append, retry_s, **options
    )


def run_all(saves: Sequence[SaveCall]) -> None:
    for save in saves:
        save()


def test_calls_run_in_order_and_are_retried_until_they_succeed():
    warnings: list[Exception] = []
    service, queue = FailingService(3, OSError("away")), make_queue(warnings)
    for number in range(20):
        queue.submit(service.call(number))
    while not service.done:
        threading.Event().wait(0.01)
    assert queue.close(60)
    assert service.done == list(range(20))
    assert [str(error) for error in warnings] == ["away"]


def test_a_permanent_error_drops_that_call_alone():
    warnings: list[Exception] = []
    service, queue = FailingService(1, ValueError("wrong")), make_queue(warnings)
    for number in range(3):
        queue.submit(service.call(number))
    assert queue.close(60)
    assert service.done == [1, 2]
    assert len(warnings) == 1


def test_close_tries_once_more_and_gives_up():
    warnings: list[Exception] = []
    service, queue = FailingService(10**9, OSError("away")), make_queue(warnings, retry_s=3600)
    queue.submit(service.call(0))
    queue.submit(service.call(1))
    assert not queue.close(60)
    assert service.done == []
    assert len(warnings) == 1


def test_close_retries_when_the_service_works_again():
    warnings: list[Exception] = []
    service, queue = FailingService(1, OSError("away")), make_queue(warnings, retry_s=3600)
    queue.submit(service.call(0))
    while not warnings:
        threading.Event().wait(0.01)
    assert queue.close(60)
    assert service.done == [0]


def test_close_gives_up_on_a_call_that_hangs():
    warnings: list[Exception] = []
    hang = threading.Event()
    queue = make_queue(warnings)
    queue.submit(hang.wait)
    assert not queue.close(0.1)
    hang.set()
    assert isinstance(warnings[0], TimeoutError)


def test_run_returns_results_errors_and_timeouts():
    queue = make_queue([])
    assert queue.run(lambda: 7, 60) == 7
    with pytest.raises(KeyError):
        queue.run(lambda: {}["no"], 60)
    hang = threading.Event()
    with pytest.raises(TimeoutError):
        queue.run(hang.wait, 0.05)
    hang.set()
    assert queue.close(60)
    with pytest.raises(RuntimeError, match="closed"):
        queue.run(lambda: 1, 60)


def test_run_behind_a_failing_call_fails_with_its_error():
    service = FailingService(10**9, OSError("away"))
    queue = make_queue([], retry_s=3600)
    queue.submit(service.call(0))
    with pytest.raises(OSError, match="away"):
        queue.run(lambda: 1, 60)
    with pytest.raises(OSError, match="away"):
        queue.run(lambda: 1, 60)
    queue.close(60)


def test_calls_are_saved_once_when_one_before_them_fails():
    saved: list[int] = []
    service = FailingService(2, OSError("away"))
    queue = make_queue([], save=run_all)
    for number in range(3):
        queue.submit(service.call(number), lambda number=number: saved.append(number))
    while len(service.done) < 3:
        threading.Event().wait(0.01)
    queue.submit(service.call(3), lambda: saved.append(3))
    assert queue.close(60)
    assert queue.is_complete
    assert saved == [0, 1, 2]


def test_what_is_left_at_the_end_is_saved():
    saved: list[int] = []
    hang = threading.Event()
    queue = make_queue([], save=run_all)
    queue.submit(hang.wait, lambda: saved.append(0))
    queue.submit(lambda: None, lambda: saved.append(1))
    assert not queue.close(0.1)
    hang.set()
    assert saved == [0, 1]
    assert not queue.is_complete


def test_a_call_that_fails_for_good_is_saved():
    saved: list[int] = []
    service, queue = FailingService(1, ValueError("wrong")), make_queue([], save=run_all)
    queue.submit(service.call(0), lambda: saved.append(0))
    assert queue.close(60)
    assert saved == [0]
    assert not queue.is_complete


def test_a_full_queue_saves_and_does_not_grow():
    saved: list[int] = []
    warnings: list[Exception] = []
    hang = threading.Event()
    queue = make_queue(warnings, save=run_all, max_calls=2)
    for number in range(5):
        queue.submit(hang.wait, lambda number=number: saved.append(number))
    assert saved == [2, 3, 4]
    assert isinstance(warnings[0], QueueFull)
    hang.set()
    assert queue.close(60)
    assert not queue.is_complete


def test_the_end_of_a_slow_service_is_waited_for_in_total():
    turns, hang = threading.Semaphore(1), threading.Event()
    queue = make_queue(warnings := [])
    queue.submit(turns.acquire)
    queue.submit(hang.wait)
    assert not queue.close(3600, total_s=0.2)
    hang.set()
    assert str(warnings[0]) == "no response in 0.2 s"
