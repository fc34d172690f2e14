"""Time left: within a factor of 1.5 from a tenth of the work on, for several kinds of progress."""

import heapq
import random

import pytest

from pipelines.recipe.time_left import TimeLeft, duration

FACTOR = 1.5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (125, "2 min 05 s"), (12_000, "3 h 20 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def steady(events, every_s, units=1, start_s=0.0):
    """Pairs of a time and the units finished by then."""
    return [(start_s + every_s * number, units * number) for number in range(1, events + 1)]


def rate_changes(before_s, after_s, events=1000):
    half = steady(events // 2, before_s)
    now_s, done = half[-1]
    return half + [(now_s + at_s, done + more) for at_s, more in steady(events // 2, after_s)]


def parallel(workers, tasks, task_s, jitter, start_s):
    """Workers that start together, each with one task at a time."""
    rng = random.Random(0)
    free = [start_s] * workers
    ends = []
    for _ in range(tasks):
        ends.append(heapq.heappop(free) + task_s * rng.uniform(1 - jitter, 1 + jitter))
        heapq.heappush(free, ends[-1])
    return [(now_s, number) for number, now_s in enumerate(sorted(ends), 1)]


def wrong(events, first_share=0.1, done=0, slack=0.02):
    """Shares of the work at which the time left is off by more than a factor (and 2 % of the whole time)."""
    (end_s, total), clock = events[-1], TimeLeft(0.0, done)
    shares, every = [], max(1, len(events) // 400)
    nexts = [*events[1:], events[-1]]
    for number, ((now_s, finished), (next_s, _)) in enumerate(zip(events, nexts, strict=True)):
        clock.update(now_s, finished)
        if number % every:
            continue
        share = (finished - done) / (total - done)
        for at_s in (now_s, now_s + 0.5 * (next_s - now_s), now_s + 0.95 * (next_s - now_s)):
            left_s, true_s = clock.left_s(at_s, total), end_s - at_s
            least_s, most_s = true_s / FACTOR - slack * end_s, true_s * FACTOR + slack * end_s
            if share >= first_share and not least_s <= left_s <= most_s:
                shares.append(round(share, 3))
    return shares


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(steady(500, 1.0), id="steady"),
        pytest.param(steady(60_000, 0.001), id="a thousand updates a second"),
        pytest.param(steady(20, 5.0, units=64), id="every few seconds"),
        pytest.param(steady(3, 20.0), id="three models"),
        pytest.param(steady(200, 3.0, start_s=60), id="compilation, then ten minutes"),
        pytest.param(steady(200, 0.1, start_s=60), id="compilation, then twenty seconds"),
        pytest.param(steady(20, 5.0, start_s=10), id="short start-up, few updates"),
        pytest.param(parallel(2, 40, 10.0, 0.05, 15), id="bursts of 2 workers"),
        pytest.param(parallel(8, 200, 10.0, 0.05, 15), id="bursts of 8 workers"),
        pytest.param(parallel(16, 320, 10.0, 0.1, 15), id="bursts of 16 workers"),
        pytest.param(parallel(4, 400, 3.0, 0.3, 10), id="uneven tasks"),
    ],
)
def test_time_left_is_right_from_a_tenth_on(events):
    assert [share for share in wrong(events) if share < 0.97] == []


def test_resumed_work_counts_only_what_is_new():
    events = [(now_s, 500 + done) for now_s, done in steady(500, 0.2, start_s=5)]
    assert wrong(events, done=500) == []


@pytest.mark.parametrize(("before_s", "after_s"), [(0.1, 0.3), (0.3, 0.1)])
def test_time_left_follows_a_new_rate(before_s, after_s):
    shares = wrong(rate_changes(before_s, after_s))
    assert [share for share in shares if share > 0.62] == []
    assert any(0.5 <= share <= 0.52 for share in shares) or before_s > after_s


def test_start_up_ends_with_a_second_call_without_progress():
    clock = TimeLeft(0.0, 0)
    clock.update(60.0, 0)
    clock.update(61.0, 10)
    assert clock.rate() == pytest.approx(10)


def test_lost_units_restart_the_clock():
    clock = TimeLeft(0.0, 0)
    for now_s, done in steady(100, 1.0):
        clock.update(now_s, done)
    clock.update(150.0, 60)
    assert clock.rate() is None
    clock.update(152.0, 70)
    assert clock.rate() == pytest.approx(5)


def test_time_left_counts_down_between_updates_but_not_forever():
    clock = TimeLeft(0.0, 0)
    for now_s, done in steady(10, 10.0):
        clock.update(now_s, done)
    assert clock.left_s(100.0, 20) == pytest.approx(100)
    assert clock.left_s(105.0, 20) == pytest.approx(95)
    assert clock.left_s(500.0, 20) == pytest.approx(90)


def test_time_left_is_an_upper_bound_while_the_start_up_counts():
    clock = TimeLeft(0.0, 0)
    assert not clock.is_bound
    clock.update(60.0, 10)  # 50 s of start-up, then one unit a second
    clock.update(65.0, 15)
    assert clock.is_bound
    assert clock.left_s(65.0, 100) > 85
    clock.update(70.0, 20)
    assert not clock.is_bound
    assert clock.left_s(70.0, 100) == pytest.approx(80, rel=0.6)
