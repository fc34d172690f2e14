"""Ticks of a simulated month: each once, with restarts, pauses, two schedulers and both clock changes."""

from datetime import UTC, datetime, timedelta

import pytest

from genmod import storage
from genmod.errors import ConfigError
from genmod.lease import Lease, acquire
from pipelines.commands.scheduler import Scheduler, TickRun
from pipelines.commands.ticks import tick_name
from pipelines.recipe.cron import ticks_after
from pipelines.recipe.retraining import ScheduleConfig


class Simulated:
    """A clock that jumps, and the log of what ran."""

    def __init__(self, start):
        self.time, self.runs, self.takes_s = start, [], 300.0

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.time += timedelta(seconds=seconds)

    def run(self, name):
        self.runs.append((name, self.time))
        self.sleep(self.takes_s)
        return TickRun(0, "done")


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "root")


def make(root, clock, by="one", **config):
    config = ScheduleConfig.model_validate({"lease_s": 1, **config})
    return Scheduler(root, config, ("vae",), by, clock, clock.run)


def expected(config, start, end):
    names = []
    for tick in ticks_after(config.cron, config.timezone, start):
        if tick > end:
            return names
        names.append(tick_name(tick))


def run_until(scheduler, clock, end):
    while clock.time < end:
        wake = scheduler.step()
        clock.time = max(clock.time, min(wake, end))


@pytest.mark.parametrize(
    ("start", "cron"),
    [
        (datetime(2026, 3, 14, tzinfo=UTC), "30 2 * * *"),
        (datetime(2026, 10, 11, tzinfo=UTC), "30 2 * * *"),
        (datetime(2026, 10, 11, tzinfo=UTC), "0 */6 * * *"),
    ],
)
def test_each_tick_of_a_month_runs_once_with_restarts_and_two_schedulers(root, start, cron):
    """In turns, as processes that share the store do; each is replaced by a new one now and then."""
    clock = Simulated(start)
    config = {"cron": cron, "timezone": "Europe/Berlin", "jitter_s": 600, "catch_up": "all"}
    schedulers = [make(root, clock, by, **config) for by in ("one", "two")]
    end, wakes, steps = start + timedelta(days=31), [start, start], 0
    while min(wakes) < end:
        turn = wakes.index(min(wakes))
        clock.time = max(clock.time, wakes[turn])
        wakes[turn] = schedulers[turn].step()
        steps += 1
        if (
            steps % 7 == 0
        ):  # a new process knows only the store; the other one is away for three days
            schedulers[turn] = make(root, clock, "new", **config)
            wakes[1 - turn] += timedelta(days=3)
    names = [name for name, _ in clock.runs]
    wanted = expected(schedulers[0].config, start, end)
    assert len(wanted) >= 30
    assert names[: len(wanted)] == wanted
    assert len(names) == len(set(names))
    late_s = [(time - schedulers[0].due_at(ticks)).total_seconds() for ticks, time in _times(clock)]
    assert min(late_s) >= 0


def _times(clock):
    for name, time in clock.runs:
        yield datetime.strptime(name, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC), time


def test_clock_changes_in_berlin():
    def local(cron, day, month):
        start = datetime(2026, month, day, tzinfo=UTC)
        ticks = expected(
            ScheduleConfig(cron=cron, timezone="Europe/Berlin"), start, start + timedelta(days=2)
        )
        return [name[6:13] for name in ticks]

    # 29 March 2026: 02:00 CET is 03:00 CEST. A skipped time runs right after the change.
    assert local("30 2 * * *", 28, 3) == ["28T0130", "29T0100"]
    # 25 October 2026: 03:00 CEST is 02:00 CET. A time that occurs twice runs the first time.
    assert local("30 2 * * *", 24, 10) == ["24T0030", "25T0030"]
    assert len(local("0 * * * *", 24, 10)) == 48


@pytest.mark.parametrize(
    ("catch_up", "made_up"), [("none", []), ("latest", [9]), ("all", [5, 6, 7, 8, 9])]
)
def test_what_is_made_up_for_after_a_pause(root, catch_up, made_up):
    clock = Simulated(datetime(2026, 6, 1, tzinfo=UTC))
    run_until(make(root, clock, catch_up=catch_up), clock, datetime(2026, 6, 4, 12, tzinfo=UTC))
    clock.time = datetime(2026, 6, 9, 12, tzinfo=UTC)
    run_until(make(root, clock, catch_up=catch_up), clock, datetime(2026, 6, 11, 12, tzinfo=UTC))
    assert [int(name[6:8]) for name, _ in clock.runs] == [1, 2, 3, 4, *made_up, 10, 11]


@pytest.mark.parametrize(("overlap", "hours"), [("skip", [0, 3, 6]), ("queue", [0, 1, 2, 3])])
def test_ticks_while_one_works(root, overlap, hours):
    clock = Simulated(datetime(2026, 6, 1, 0, 0, tzinfo=UTC) - timedelta(minutes=1))
    clock.takes_s = 2.5 * 3600
    run_until(
        make(root, clock, cron="0 * * * *", overlap=overlap), clock, clock.time + timedelta(hours=8)
    )
    assert [int(name[9:11]) for name, _ in clock.runs][: len(hours)] == hours


def test_another_scheduler_skips_a_tick_while_one_works_and_takes_over_when_it_ends(root):
    clock = Simulated(datetime(2026, 6, 1, 0, 59, 59, tzinfo=UTC))
    one, two = (make(root, clock, by, cron="0 * * * *") for by in ("one", "two"))
    one.step(), two.step()
    clock.time += timedelta(seconds=1)

    def work_long(name):
        clock.runs.append((name, clock.time))
        assert two.step() <= clock.time + timedelta(seconds=1), "it looks again soon"
        clock.time += timedelta(hours=1)
        two.step()
        raise KeyboardInterrupt

    one.run = work_long
    with pytest.raises(KeyboardInterrupt):
        one.step()
    assert [name for name, _ in clock.runs] == ["20260601T010000Z"]
    two.step()
    two.step()
    assert [name for name, _ in clock.runs] == ["20260601T010000Z"] * 2 + ["20260601T020000Z"]
    assert two.store.read("outcomes", "20260601T010000Z").by == "two"


def test_once_runs_the_newest_tick_and_only_once(root):
    clock = Simulated(datetime(2026, 6, 1, 5, tzinfo=UTC))
    assert make(root, clock).once() == ("20260601T030000Z", TickRun(0, "done"), "done")
    assert make(root, clock).once() == ("20260601T030000Z", None, "already finished")
    clock.time += timedelta(days=3)
    assert make(root, clock).once()[0] == "20260604T030000Z"
    assert [name for name, _ in clock.runs] == ["20260601T030000Z", "20260604T030000Z"]


def test_once_answers_while_another_one_works(root):
    clock = Simulated(datetime(2026, 6, 1, 5, tzinfo=UTC))
    first, second = make(root, clock), make(root, clock)
    answers = []

    def work(name):
        answers.append(second.once())
        return TickRun(3)

    first.run = work
    assert first.once()[1] == TickRun(3)
    ((name, run, text),) = answers
    assert (name, run) == ("20260601T030000Z", None)
    assert text.startswith("already running: ")


def test_once_skips_or_waits_while_an_older_tick_runs(root):
    for overlap, what in (("skip", "skipped"), ("queue", "done")):
        clock = Simulated(datetime(2026, 6, 1, 5, tzinfo=UTC))
        first, second = (make(f"{root}-{overlap}", clock, overlap=overlap) for _ in range(2))
        lease = acquire(first.root, first.lease_name, 1)
        assert isinstance(lease, Lease)
        start = first.store.record("started")
        first.store.write("starts", f"20260531T030000Z-{lease.number:08d}", start)
        sleep = clock.sleep
        clock.sleep = lambda seconds, lease=lease, sleep=sleep: (lease.release(), sleep(seconds))
        assert second.once()[2] == what
        lease.release()


def test_jitter_is_a_function_of_the_tick(root):
    clock = Simulated(datetime(2026, 6, 1, tzinfo=UTC))
    ticks = [clock.time + timedelta(days=day) for day in range(40)]
    late = [make(root, clock, jitter_s=600).due_at(tick) - tick for tick in ticks]
    assert late == [make(root, clock, "two", jitter_s=600).due_at(tick) - tick for tick in ticks]
    assert late != [make(f"{root}2", clock, jitter_s=600).due_at(tick) - tick for tick in ticks]
    assert timedelta(0) <= min(late) < timedelta(seconds=100)
    assert timedelta(seconds=500) < max(late) < timedelta(seconds=600)
    with pytest.raises(ConfigError, match="are 3600 s apart"):
        make(root, clock, cron="0 * * * *", jitter_s=3600).check()


def test_forged_objects_delay_or_skip_a_tick_and_no_more(root):
    clock = Simulated(datetime(2026, 6, 1, tzinfo=UTC))
    scheduler = make(root, clock)
    scheduler.step()
    record = scheduler.store.record("seen")
    for name in ("20991231T030000Z", "20260601T000001Z", "20269999T999999Z", "x"):
        scheduler.store.write("ticks", name, record)
    storage_url = scheduler.store.url("claims", "20260602T030000Z")
    storage.write_bytes(storage_url, b'{"command": "rm -rf /"}')
    run_until(scheduler, clock, datetime(2026, 6, 4, tzinfo=UTC))
    assert [name for name, _ in clock.runs] == ["20260601T030000Z", "20260603T030000Z"]
