"""Time left of jobs that share a pool, replayed on a simulated clock: within a factor of 1.5 from 10 % on."""

import heapq
import random
from collections import Counter
from itertools import zip_longest
from math import inf

import pytest

from genmod.stopwatch import ENCODE, MODEL, START, WRITE, Stopwatch, measured, measured_items
from pipelines.jobs.work_times import Left, RowCosts, WorkTimes

FACTOR, SLACK = 1.5, 0.02
ROWS = 100
"""Rows of a unit."""


class Pool:
    """Replays a pool of workers to which units of several jobs are given in turn."""

    def __init__(
        self,
        jobs,
        workers,
        *,
        start_s=20.0,
        jitter=0.1,
        idle_s=0.05,
        costs=None,
        at_s=0.0,
        title="sample",
    ):
        self.jobs, self.now_s, self.at_s = jobs, at_s, at_s
        self.costs = RowCosts() if costs is None else costs
        self.times = WorkTimes(self.costs, lambda: self.now_s)
        rng = random.Random(0)
        turns = zip_longest(*([name] * units for name, (units, _) in jobs.items()))
        queue = [name for turn in turns for name in turn if name is not None]
        self.times.started(min(workers, len(queue)), self.lefts(Counter(), title))
        free = [(at_s + start_s * rng.uniform(0.8, 1.2), worker) for worker in range(workers)]
        heapq.heapify(free)
        self.events = []
        started = set()
        for name in queue:
            begin_s, worker = heapq.heappop(free)
            wall_s = jobs[name][1] * rng.uniform(1 - jitter, 1 + jitter)
            load_s = 0.0 if (worker, name) in started else 1.0
            started.add((worker, name))
            end_s = begin_s + wall_s + load_s
            self.events.append((end_s, worker, name, wall_s + load_s, load_s))
            heapq.heappush(free, (end_s + idle_s, worker))
        self.events.sort()
        self.end_s = {name: end_s for end_s, _, name, *_ in self.events}

    def lefts(self, done, title="sample"):
        return [
            Left(f"{title} {name}", name, units - done[name], ROWS * (units - done[name]))
            for name, (units, _) in self.jobs.items()
        ]

    def replay(self, title="sample"):
        """The time and the units of each job that are done, after each unit."""
        done = Counter()
        for end_s, worker, name, wall_s, load_s in self.events:
            self.now_s = end_s
            seconds = {MODEL: wall_s - load_s, START: load_s}
            result = {"num_rows": ROWS, "wall_s": wall_s, "seconds": seconds, "worker": str(worker)}
            self.times.add(f"{title} {name}", name, result)
            done[name] += 1
            yield end_s, done


def wrong(pool, title="sample"):
    """(share of all work, job, estimate, truth) of each estimate that is off by more than the factor."""
    bad, total_s = [], max(pool.end_s.values()) - pool.at_s
    for end_s, done in pool.replay(title):
        share = (end_s - pool.at_s) / total_s
        if share < 0.1:
            continue
        lefts = pool.lefts(done, title)
        for name, last_s in pool.end_s.items():
            left_s, true_s = pool.times.left_s(f"{title} {name}", lefts), last_s - end_s
            if min(done[other] for other in pool.jobs) == 0:
                assert left_s == inf  # nothing is known of a model
                continue
            slack_s = SLACK * total_s + max(unit_s for _, unit_s in pool.jobs.values()) / 2
            if true_s > 0 and not (
                true_s / FACTOR - slack_s <= left_s <= true_s * FACTOR + slack_s
            ):
                bad.append((round(share, 3), name, round(left_s), round(true_s)))
    return bad


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize(
    "jobs",
    [
        pytest.param({"a": (200, 3.0)}, id="one model"),
        pytest.param({"a": (100, 30.0), "b": (100, 0.5)}, id="unlike cost"),
        pytest.param({"slow": (40, 60.0), "fast": (400, 1.0)}, id="unlike cost and size"),
        pytest.param({"slow": (400, 60.0), "fast": (40, 1.0)}, id="the slow one is larger"),
        pytest.param({"a": (90, 2.0), "b": (60, 20.0), "c": (150, 0.3)}, id="three models"),
    ],
)
def test_the_time_left_of_each_job_is_right_from_a_tenth_on(jobs, workers):
    assert wrong(Pool(jobs, workers)) == []


def test_the_time_left_of_very_many_units_is_right():
    pool = Pool({"a": (100_000, 1.0), "b": (20_000, 5.0)}, 8)
    for number, (end_s, done) in enumerate(pool.replay()):
        if number in (20_000, 39_000, 60_000):
            for name, last_s in pool.end_s.items():
                left_s = pool.times.left_s(f"sample {name}", pool.lefts(done))
                assert left_s == pytest.approx(max(0, last_s - end_s), rel=0.06, abs=10)


def test_the_time_left_follows_a_worker_that_is_lost():
    pool = Pool({"a": (400, 5.0)}, 4)
    half_s = pool.end_s["a"] / 2
    pool.events = [e if e[0] < half_s or e[1] < 2 else (0, *e[1:]) for e in pool.events]
    pool.events = [event for event in pool.events if event[0]]
    for end_s, done in pool.replay():
        if end_s > half_s + 30:
            left_s = pool.times.left_s("sample a", pool.lefts(done))
            assert left_s == pytest.approx((400 - done["a"]) * 5.05 / 2, rel=0.2, abs=10)


def test_calibration_foretells_the_scoring_that_follows():
    """All the work that is left, from a tenth of the first phase on: 44 s must not become 2 h."""
    first = Pool({"vae": (10, 2.0), "flow": (10, 40.0)}, 2, title="calibrate")
    later = Pool(
        {"vae": (100, 2.0), "flow": (100, 40.0)},
        2,
        title="score",
        costs=first.costs,
        at_s=max(first.end_s.values()),
    )
    end_s, scored = max(later.end_s.values()), Counter()
    for now_s, done in first.replay("calibrate"):
        if min(done["vae"], done["flow"]):
            lefts = first.lefts(done, "calibrate")
            left_s = first.times.all_left_s(lefts, later.lefts(scored, "score"))
            assert (end_s - now_s) / FACTOR < left_s < (end_s - now_s) * FACTOR
    assert wrong(later, "score") == []


def test_no_time_is_said_before_the_first_unit():
    times = WorkTimes(RowCosts())
    times.started(2, [Left("sample a", "a", 3, 300)])
    assert times.left_s("sample a", [Left("sample a", "a", 3, 300)]) == inf
    assert times.all_left_s([Left("sample a", "a", 3, 300)]) == inf
    assert times.summary("sample a") is None


def test_the_summary_says_where_the_time_of_the_workers_went():
    now_s = 0.0
    times = WorkTimes(RowCosts(), lambda: now_s)
    times.started(1, [Left("sample a", "a", 1, 10)])
    seconds = {MODEL: 6.0, ENCODE: 1.0, WRITE: 0.5, START: 0.5}
    result = {"num_rows": 10, "wall_s": 8.0, "seconds": seconds, "worker": "w"}
    now_s = 10.0  # two seconds until the worker was there
    times.add("sample a", "a", result)
    text = "sample a: time of its workers: model 60%, encode 10%, write 5%, start and wait 25%"
    assert times.summary("sample a") == text


def test_a_job_that_was_all_waiting_says_so():
    now_s = 0.0
    times = WorkTimes(RowCosts(), lambda: now_s)
    times.started(1, [Left("sample a", "a", 1, 10)])
    now_s = 1000.0
    result = {"num_rows": 10, "wall_s": 1.0, "seconds": {MODEL: 1.0}, "worker": "w"}
    times.add("sample a", "a", result)
    assert times.summary("sample a") == "sample a: time of its workers: start and wait 100%"


def test_a_stopwatch_counts_each_second_once():
    now_s = 0.0
    watch = Stopwatch(lambda: now_s)
    with watch.running(ENCODE):
        now_s += 1
        with measured(WRITE):
            now_s += 2
            with measured(START):
                now_s += 4
        now_s += 8
        for _ in measured_items(range(2), MODEL):
            now_s += 16
    with measured(WRITE):  # no stopwatch runs
        now_s += 32
    assert watch.seconds == {ENCODE: 41, WRITE: 2, START: 4, MODEL: 0}
