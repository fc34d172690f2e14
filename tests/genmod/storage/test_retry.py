"""Backoff: pauses grow to a limit, and end with the attempts or the time."""

import asyncio

import pytest

from genmod import storage
from genmod.errors import StoreUnavailable
from genmod.storage.retry import Backoff, with_retries


def test_pauses_double_up_to_the_longest():
    backoff = Backoff(first_s=1.0, last_s=4.0)
    pauses = [backoff.next_pause_s() for _ in range(6)]
    for pause_s, expected_s in zip(pauses, (1, 2, 4, 4, 4, 4), strict=True):
        assert 0.5 * expected_s <= pause_s <= 1.5 * expected_s
    assert backoff.failed == 6


def test_attempts_and_time_end_it():
    assert [Backoff(attempts=1).next_pause_s(), Backoff(timeout_s=0.0).next_pause_s()] == [None] * 2
    backoff = Backoff(attempts=3)
    assert [backoff.next_pause_s() is None for _ in range(3)] == [False, False, True]


@pytest.fixture
def quick():
    storage.configure(storage.StorageConfig(retry_timeout_s=0.5))
    yield
    storage.configure(None)


def requests(errors):
    """A request that fails with these errors, then succeeds."""
    waiting = iter(errors)

    async def request():
        for error in waiting:
            raise error
        return "answer"

    return request


def test_transient_errors_are_retried(quick):
    request = requests([ConnectionError("reset"), TimeoutError()])
    assert asyncio.run(with_retries("s3://b/k", request)) == "answer"


def test_final_errors_are_not_retried(quick):
    request = requests([FileNotFoundError("k")])
    with pytest.raises(FileNotFoundError):
        asyncio.run(with_retries("s3://b/k", request))
    assert asyncio.run(request()) == "answer"


def test_giving_up_is_one_line_that_says_what_to_do(quick):
    request = requests([ConnectionError("connection\nreset")] * 100)
    with pytest.raises(
        StoreUnavailable, match=r"s3://b/k: storage stayed unavailable: .*reset"
    ) as error:
        asyncio.run(with_retries("s3://b/k", request))
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("check the storage, then run the same command again")
