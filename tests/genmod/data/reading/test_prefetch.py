import gc
import threading
import time

import pytest

from genmod.data.reading.prefetch import Prefetch


def prefetch_threads():
    return [t for t in threading.enumerate() if t.name == "prefetch"]


def gone(deadline_s=60.0):
    end = time.monotonic() + deadline_s
    while prefetch_threads() and time.monotonic() < end:
        time.sleep(0.01)
    return not prefetch_threads()


def test_items_come_in_order_and_end():
    items = Prefetch(iter(range(100)), 3)
    assert list(items) == list(range(100))
    assert list(items) == []
    assert gone()


def test_it_runs_at_most_so_far_ahead():
    numbers = []

    def items():
        for number in range(100):
            numbers.append(number)
            yield number

    with Prefetch(items(), 3) as ahead:
        assert next(ahead) == 0
        deadline_s = time.monotonic() + 60
        while len(numbers) < 4 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        time.sleep(0.2)  # it could take more now
        assert numbers == [0, 1, 2, 3]
    assert gone()


def test_an_error_is_raised_where_the_item_was_due():
    def items():
        yield 1
        raise ValueError("broken at the second")

    ahead = Prefetch(items(), 5)
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="broken at the second"):
            next(ahead)


def test_it_ends_when_closed_and_when_forgotten():
    def forever():
        while True:
            yield bytes(1000)

    ahead = Prefetch(forever(), 2)
    next(ahead)
    ahead.close()
    assert gone()
    with pytest.raises(StopIteration):
        next(ahead)
    ahead = Prefetch(forever(), 2)
    next(ahead)
    del ahead
    gc.collect()
    assert gone()
