"""Logs of leases and ticks of a schedule: written as processes write them, and read as others do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from genmod.lease import Busy, Lease, LeaseHolder, acquire
from genmod.lease.entries import LeaseEntry, LeaseLog
from pipelines.commands.scheduler import Scheduler, TickRun
from pipelines.recipe.retraining import ScheduleConfig

_START = datetime(2026, 6, 1, tzinfo=UTC)
_LEASE_S = 1.0


class _Clock:
    """A clock that jumps."""

    def __init__(self, time: datetime) -> None:
        self.time = time

    def now(self) -> datetime:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


def _scheduler(folder: Path, clock: _Clock) -> Scheduler:
    config = ScheduleConfig(cron="0 3 * * *", overlap="queue", catch_up="all", lease_s=_LEASE_S)
    return Scheduler(str(folder), config, ("m",), "fuzz", clock, lambda name: TickRun(0, "done"))


def write_lease(folder: Path) -> None:
    """Write the log of a holder that was killed while it published a file."""
    holder = LeaseHolder(user="a", host="b", pid=1, since="c", machine="boot", started=5)
    entry = LeaseEntry(kind="acquired", number=1, holder=holder, lease_s=_LEASE_S)
    log = LeaseLog(str(folder / "leases" / "work"))
    log.append(1, entry)
    changes = {"kind": "published", "path": "decision/m/decision.json", "text": "{}"}
    log.append(2, entry.model_copy(update=changes))
    log.write_heartbeat(1, 7, "train m: 3/9 images")


def write_ticks(folder: Path) -> None:
    """Write two days of ticks, one of which was started and did not end."""
    clock = _Clock(_START)
    for _ in range(3):
        clock.time = _scheduler(folder, clock).step()
    (file,) = folder.glob("schedule/*/outcomes/20260602T030000Z.json")
    file.unlink()


def take_lease(folder: Path) -> None:
    """Take the lease over, with a clock on which a holder that is silent has been so for long."""
    jumps = count(step=1e6)
    lease = acquire(str(folder), "work", _LEASE_S, now=lambda: next(jumps))
    if isinstance(lease, Lease):
        lease.create(f"{folder}/decision/n.json", b"{}")
        lease.release()


def say_who_works(folder: Path) -> None:
    """Read what a second process says about the holder."""
    log = LeaseLog(str(folder / "leases" / "work"))
    _, entry = log.newest()
    assert entry is not None
    str(Busy(entry.holder, entry.number, log.progress(entry.number)).holder)
    entry.holder.has_ended()


def run_ticks(folder: Path) -> None:
    """Let a scheduler finish what another one left, and go on for two days."""
    clock = _Clock(_START + timedelta(days=1, hours=12))
    scheduler = _scheduler(folder, clock)
    for _ in range(3):
        clock.time = max(clock.time, scheduler.step())
    scheduler.once()
