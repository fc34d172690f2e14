"""The queue of calls that may fail or hang: nothing is lost that could be made, nobody waits for ever."""

from __future__ import annotations

import threading

import pytest

from pipelines.tracking.queue import BackgroundQueue


class TrackingClient:
    """Fails the first ``times`` calls, then works."""

    def __init__(self, times: int, error: Exception) -> None:
        self.left, self.error = times, error
        self.made: list[int] = []

    def call(self, number: int):
        def call():
            if self.left > 0:
                self.left -= 1
                raise self.error
            self.made.append(number)
            return number

        return call


def _outbox(heard: list[Exception], retry_s: float = 0.01) -> BackgroundQueue:
    return BackgroundQueue(
        "test", lambda error: isinstance(error, ValueError), heard.append, retry_s
    )


def test_calls_are_made_in_order_and_again_until_they_succeed():
    heard: list[Exception] = []
    service, outbox = TrackingClient(3, OSError("away")), _outbox(heard)
    for number in range(20):
        outbox.put(service.call(number))
    while not service.made:
        threading.Event().wait(0.01)
    assert outbox.close(60)
    assert service.made == list(range(20))
    assert [str(error) for error in heard] == ["away"]


def test_a_permanent_error_drops_that_call_alone():
    heard: list[Exception] = []
    service, outbox = TrackingClient(1, ValueError("wrong")), _outbox(heard)
    for number in range(3):
        outbox.put(service.call(number))
    assert outbox.close(60)
    assert service.made == [1, 2]
    assert len(heard) == 1


def test_close_tries_once_more_and_gives_up():
    heard: list[Exception] = []
    service, outbox = TrackingClient(10**9, OSError("away")), _outbox(heard, retry_s=3600)
    outbox.put(service.call(0))
    outbox.put(service.call(1))
    assert not outbox.close(60)
    assert service.made == []
    assert len(heard) == 1


def test_close_sends_what_a_service_that_is_back_takes():
    heard: list[Exception] = []
    service, outbox = TrackingClient(1, OSError("away")), _outbox(heard, retry_s=3600)
    outbox.put(service.call(0))
    while not heard:
        threading.Event().wait(0.01)
    assert outbox.close(60)
    assert service.made == [0]


def test_close_gives_up_on_a_call_that_hangs():
    heard: list[Exception] = []
    hang = threading.Event()
    outbox = _outbox(heard)
    outbox.put(hang.wait)
    assert not outbox.close(0.1)
    hang.set()
    assert isinstance(heard[0], TimeoutError)


def test_questions_get_answers_errors_and_deadlines():
    outbox = _outbox([])
    assert outbox.ask(lambda: 7, 60) == 7
    with pytest.raises(KeyError):
        outbox.ask(lambda: {}["no"], 60)
    hang = threading.Event()
    with pytest.raises(TimeoutError):
        outbox.ask(hang.wait, 0.05)
    hang.set()
    assert outbox.close(60)
    with pytest.raises(RuntimeError, match="closed"):
        outbox.ask(lambda: 1, 60)


def test_a_question_behind_a_failing_call_fails_with_it():
    service = TrackingClient(10**9, OSError("away"))
    outbox = _outbox([], retry_s=3600)
    outbox.put(service.call(0))
    with pytest.raises(OSError, match="away"):
        outbox.ask(lambda: 1, 60)
    with pytest.raises(OSError, match="away"):
        outbox.ask(lambda: 1, 60)
    outbox.close(60)
