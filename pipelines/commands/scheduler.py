"""Runs each tick of a schedule once, however many schedulers share the root.

A tick runs while its scheduler holds the schedule's lease, and its outcome is published under that lease. So
of several schedulers one runs a tick, and if that one ends before the outcome, another runs the tick again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from genmod import storage
from genmod.errors import ConfigError
from genmod.lease import Busy, Lease, LeaseLost, acquire
from genmod.terminal import print_line
from pipelines.commands.ticks import (
    SCHEDULE_FOLDER,
    TickStore,
    schedule_id,
    tick_name,
    tick_of,
)
from pipelines.recipe.cron import newest_tick, ticks_after
from pipelines.recipe.retraining import ScheduleConfig

_GRACE = timedelta(seconds=60)
"""A tick that is due for longer when a scheduler first looks was missed."""

_LOOK_AHEAD = 200
"""Ticks whose distances are compared with the jitter."""


class WallClock(Protocol):
    """A wall clock and a way to wait."""

    def now(self) -> datetime:
        """The time, in UTC."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait so long, or less."""
        ...


@dataclass(frozen=True)
class TickRun:
    """How the command of a tick ended."""

    exit_code: int
    status: str = ""


@dataclass
class Scheduler:
    """One of the schedulers of a schedule.

    Args:
        root: URL of the recipe's root.
        config: the recipe's ``schedule``.
        models: that the ticks train.
        by: names this scheduler in what it writes.
        clock: the time.
        run: does a tick's work; its argument names the tick.
    """

    root: str
    config: ScheduleConfig
    models: tuple[str, ...]
    by: str
    clock: WallClock
    run: Callable[[str], TickRun]
    _seen: datetime | None = None
    _worked: list[tuple[datetime, datetime]] = field(default_factory=list)

    def __post_init__(self) -> None:
        identity = schedule_id(self.config.cron, self.config.timezone, self.models)
        self.lease_name = f"{SCHEDULE_FOLDER}-{identity}"
        """Name of the lease under which a tick runs."""
        folder = storage.join(self.root, SCHEDULE_FOLDER, identity)
        self.store = TickStore(folder, self.by, self.clock.now)
        """The objects of the schedule."""

    def step(self) -> datetime:
        """Do what is due, and return when to call this again."""
        self._see(self.clock.now())
        is_done = self._work_off()
        assert self._seen is not None
        wake = self.due_at(next(self._ticks(self._seen)))
        if is_done:
            return wake
        return min(wake, self.clock.now() + timedelta(seconds=self.config.lease_s / 2))

    def once(self) -> tuple[str, TickRun | None, str]:
        """Run the newest tick that is due, unless it ran: its name, how it ended, and what was done."""
        self.store.start(self.config.cron, self.config.timezone, self.models)
        tick = newest_tick(self.config.cron, self.config.timezone, self.clock.now())
        if tick is None:
            raise ConfigError(
                f"schedule: {self.config.cron!r} has not fired in the last eight years"
            )
        name = tick_name(tick)
        while (left_s := (self.due_at(tick) - self.clock.now()).total_seconds()) > 0:
            self.clock.sleep(left_s)
        self.store.write("ticks", name, self.store.record("seen"))
        while not self.store.has("outcomes", name):
            lease = acquire(self.root, self.lease_name, self.config.lease_s, progress=lambda: name)
            if isinstance(lease, Lease):
                with lease:
                    run = self._run(lease, name)
                    self._replace_older(lease, name)
                if run is not None:
                    return name, run, "done"
                continue
            other = self.store.started_by(lease.number)
            if other == name:
                return name, None, f"already running: {lease.holder}"
            is_overlap = other is not None and self.config.overlap == "skip"
            if is_overlap and self.store.skip(name, f"{other} still works, by {lease.holder}"):
                return name, None, "skipped"
            self.clock.sleep(1.0)
        outcome = self.store.read("outcomes", name)
        return name, None, f"already {outcome.state}" if outcome else "already done"

    def due_at(self, tick: datetime) -> datetime:
        """When a tick starts: its time and the jitter, which depends on the tick and the schedule alone."""
        digest = hashlib.sha256(f"{self.store.folder} {tick_name(tick)}".encode()).digest()
        share = int.from_bytes(digest[:7]) / (1 << 56)
        return tick + timedelta(seconds=share * self.config.jitter_s)

    def check(self) -> None:
        """Raise ConfigError if the jitter could change the order of ticks."""
        last = None
        for tick, _ in zip(self._ticks(self.clock.now()), range(_LOOK_AHEAD), strict=False):
            if (
                last is not None
                and (gap_s := (tick - last).total_seconds()) <= self.config.jitter_s
            ):
                raise ConfigError(
                    f"schedule.jitter_s is {self.config.jitter_s:g}, but two ticks of "
                    f"{self.config.cron!r} are {gap_s:g} s apart; set a smaller jitter"
                )
            last = tick

    def local(self, tick: datetime) -> str:
        """A time as the clock in the schedule's time zone shows it."""
        return tick.astimezone(ZoneInfo(self.config.timezone)).strftime("%Y-%m-%d %H:%M %Z")

    def _ticks(self, after: datetime) -> Iterator[datetime]:
        return ticks_after(self.config.cron, self.config.timezone, after)

    def _see(self, now: datetime) -> None:
        """Write an object for each tick that has become due, or one for all that are not made up for."""
        if self._seen is None:
            since = self.store.start(self.config.cron, self.config.timezone, self.models)
            names = [*self.store.names("ticks"), *self.store.names("passed")]
            self._seen = max([since, *map(tick_of, names)])
        on_time, missed = list[datetime](), list[datetime]()
        for tick in self._ticks(self._seen):
            if self.due_at(tick) > now:
                break
            worked = any(start <= self.due_at(tick) <= end for start, end in self._worked)
            (on_time if worked or self.due_at(tick) + _GRACE >= now else missed).append(tick)
            self._seen = tick
        keep = {"none": 0, "latest": 1, "all": len(missed)}[self.config.catch_up]
        run, passed = missed[len(missed) - keep :], missed[: len(missed) - keep]
        if passed:
            first, rule = tick_name(passed[0]), self.config.catch_up
            reason = f"{len(passed):,} ticks from {first} on (catch_up: {rule})"
            if self.store.write(
                "passed", tick_name(passed[-1]), self.store.record("passed", reason)
            ):
                print_line(f"schedule: not made up for: {reason}")
        for tick in [*run, *on_time]:
            self.store.write("ticks", tick_name(tick), self.store.record("seen"))
        self._worked.clear()

    def _work_off(self) -> bool:
        """Run or skip the ticks that were seen and have no outcome; False if others work on one."""
        outcomes = set(self.store.names("outcomes"))
        for name in self.store.names("ticks"):
            if name not in outcomes and self._is_tick(name) and not self._work(name):
                return False
        return True

    def _work(self, name: str) -> bool:
        """Run or skip one tick; False if another scheduler works on it or on one before it."""
        lease = acquire(self.root, self.lease_name, self.config.lease_s, progress=lambda: name)
        if isinstance(lease, Busy):
            other = self.store.started_by(lease.number)
            is_other = other is not None and other != name
            if not is_other or self.config.overlap == "queue":
                return self.store.has("outcomes", name)
            return self.store.skip(name, f"{other} still works, by {lease.holder}")
        with lease:
            self._run(lease, name)
        return True

    def _run(self, lease: Lease, name: str) -> TickRun | None:
        """Run a tick, unless it has an outcome by now; None if it had one or another took over."""
        store, start = self.store, self.clock.now()
        if store.has("outcomes", name):
            return None
        if not store.write("claims", name, store.record("started")):
            claim = store.read("claims", name)
            if claim is None or claim.state != "started":
                store.skip(name, "another scheduler skipped it")
                return None
            print_line(
                f"schedule: {name} was started by {claim.by} and has no outcome: started again"
            )
        store.write("starts", f"{name}-{lease.number:08d}", store.record("started"))
        print_line(f"schedule: {name} ({self.local(tick_of(name))}) starts")
        run = self.run(name)
        end = self.clock.now()
        self._worked.append((start, end))
        seconds = max(0.0, round((end - start).total_seconds(), 3))
        record = store.record(
            "finished", exit_code=run.exit_code, status=run.status, seconds=seconds
        )
        try:
            store.write("outcomes", name, record, lease.create)
        except LeaseLost as error:
            print_line(f"schedule: {error}")
            return None
        self._skip_overlapped(name, end)
        print_line(f"schedule: {name} ended with exit code {run.exit_code} in {seconds:.0f} s")
        return run

    def _skip_overlapped(self, name: str, end: datetime) -> None:
        """Skip the ticks that became due while one ran, if the schedule says so."""
        if self.config.overlap == "skip" and self._seen is not None:
            for tick in self._ticks(self._seen):
                if self.due_at(tick) > end:
                    break
                self._seen = tick
                self.store.write("ticks", tick_name(tick), self.store.record("seen"))
                self.store.skip(tick_name(tick), f"{name} still worked")

    def _replace_older(self, lease: Lease, name: str) -> None:
        """Close older ticks that were started and never ended: a newer one ran in their place."""
        outcomes = set(self.store.names("outcomes"))
        for older in self.store.names("ticks"):
            if older < name and older not in outcomes:
                record = self.store.record("replaced", f"{name} ran")
                self.store.write("outcomes", older, record, lease.create)

    def _is_tick(self, name: str) -> bool:
        """Whether a name is a time of the cron line; others are not ours."""
        tick = tick_of(name)
        return next(self._ticks(tick - timedelta(seconds=1)), None) == tick


class SystemClock:
    """The machine's clock. Long waits are cut, so that a clock that is set forward is noticed."""

    LONGEST_S = 30.0

    def now(self) -> datetime:
        """The time, in UTC."""
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        """Wait so long, at most half a minute."""
        time.sleep(min(max(seconds, 0.0), self.LONGEST_S))
