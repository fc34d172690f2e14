"""Ticks of a schedule as objects below the root: seen, claimed, started, finished; created only if absent.

Any number of schedulers share them. The objects say what was done; what a tick runs is the scheduler's own
command, so who can write them can delay a tick or have it skipped, and no more.

    ROOT/schedule/ID/schedule.json            when the schedule was first used
    ROOT/schedule/ID/passed/TIME.json         earlier ticks without objects are not made up for
    ROOT/schedule/ID/ticks/TIME.json          a scheduler has seen that the tick is due
    ROOT/schedule/ID/claims/TIME.json         whether it runs or is skipped: the first one decides
    ROOT/schedule/ID/starts/TIME-NUMBER.json  who started it, by the number of the lease
    ROOT/schedule/ID/outcomes/TIME.json       how it ended
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeVar

from pydantic import BaseModel, Field

from genmod import storage
from genmod.config import Config, canonical_json, fingerprint
from genmod.documents import parse_document
from genmod.errors import DataError, sanitize
from genmod.terminal import print_line

SCHEDULE_FOLDER = "schedule"
"""Below the recipe's root: a folder for each schedule."""

_TIME = "%Y%m%dT%H%M%SZ"
_BYTES = 8192
_CHARS = 1000

DocumentT = TypeVar("DocumentT", bound=BaseModel)
Create = Callable[[str, bytes], bool]
"""Writes an object if it does not exist; whether this call did."""


class ScheduleStart(Config):
    """When a schedule was first used; earlier ticks are none of its own."""

    since: str = Field(pattern=r"^\d{8}T\d{6}Z$")
    cron: str = Field(max_length=_CHARS)
    timezone: str = Field(max_length=_CHARS)
    models: tuple[str, ...] = Field(max_length=1_000)


class TickRecord(Config):
    """What a scheduler writes about a tick."""

    state: Literal["seen", "passed", "started", "skipped", "finished", "replaced"]
    reason: str = Field(default="", max_length=_CHARS)
    by: str = Field(max_length=_CHARS)
    at: str = Field(max_length=40)
    """UTC by the writer's clock; only shown."""
    exit_code: int | None = Field(default=None, ge=-1000, le=1000)
    status: str = Field(default="", max_length=_CHARS)
    """What the retrain's result says."""
    seconds: float | None = Field(default=None, ge=0, le=1e9)


def tick_name(tick: datetime) -> str:
    """The name of a tick's objects: its time in UTC.

    >>> tick_name(datetime(2026, 7, 1, 3, tzinfo=UTC))
    '20260701T030000Z'
    """
    return tick.astimezone(UTC).strftime(_TIME)


def tick_of(name: str) -> datetime:
    """The time of a tick, from the name of its objects. ValueError if it is no time."""
    return datetime.strptime(name, _TIME).replace(tzinfo=UTC)


def schedule_id(cron: str, timezone: str, models: Sequence[str]) -> str:
    """What tells the schedules of a root apart: when they run, and which models."""
    return fingerprint("schedule", cron, timezone, sorted(models))[:12]


@dataclass(frozen=True)
class TickStore:
    """The objects of one schedule.

    Args:
        folder: URL of the schedule's folder.
        by: names this scheduler in what it writes.
        now: the time, for what it writes.
    """

    folder: str
    by: str
    now: Callable[[], datetime]

    def start(self, cron: str, timezone: str, models: Sequence[str]) -> datetime:
        """When the schedule was first used: now, if this is the first time."""
        url = storage.join(self.folder, "schedule.json")
        try:
            data = storage.read_bytes(url, _BYTES)
        except FileNotFoundError:
            storage.check_writable(self.folder)
            first = ScheduleStart(
                since=tick_name(self.now()), cron=cron, timezone=timezone, models=tuple(models)
            )
            storage.create(url, canonical_json(first.model_dump(mode="json")))
            data = storage.read_bytes(url, _BYTES)
        hint = "remove it; ticks before now are then not made up for"
        return tick_of(parse_document(ScheduleStart, data, "a schedule", url, hint).since)

    def write(
        self, kind: str, name: str, record: TickRecord, create: Create = storage.create
    ) -> bool:
        """Write an object of a tick, if it does not exist; whether this call did."""
        return create(self.url(kind, name), canonical_json(record.model_dump(mode="json")))

    def record(self, state: str, reason: str = "", **values: object) -> TickRecord:
        """What this scheduler says about a tick now."""
        at = self.now().strftime("%Y-%m-%d %H:%M:%S UTC")
        fields = {"state": state, "reason": reason[:_CHARS], "by": self.by[:_CHARS], "at": at}
        return TickRecord.model_validate({**fields, **values})

    def read(self, kind: str, name: str) -> TickRecord | None:
        """An object of a tick; None if there is none, or it is not readable, which a line says."""
        url = self.url(kind, name)
        try:
            data = storage.read_bytes(url, _BYTES)
            return parse_document(TickRecord, data, "a record of a tick", url, "remove it")
        except FileNotFoundError:
            return None
        except DataError as error:
            print_line(f"schedule: {error}")
            return None

    def names(self, kind: str) -> list[str]:
        """Sorted names of the ticks that have an object of a kind, up to now."""
        files = storage.list_names(storage.join(self.folder, kind))
        names = [
            match[1] for file in files if (match := re.fullmatch(r"(\d{8}T\d{6}Z)\.json", file))
        ]
        latest = tick_name(self.now())
        return [name for name in names if name <= latest and _is_time(name)]

    def has(self, kind: str, name: str) -> bool:
        """Whether a tick has an object of a kind."""
        return storage.exists(self.url(kind, name))

    def started_by(self, number: int) -> str | None:
        """The tick that the holder of the lease with this number started; None if none yet."""
        for file in storage.list_names(storage.join(self.folder, "starts")):
            match = re.fullmatch(r"(\d{8}T\d{6}Z)-(\d{8})\.json", file)
            if match and int(match[2]) == number:
                return match[1]
        return None

    def skip(self, name: str, reason: str) -> bool:
        """Skip a tick unless it runs or ran; whether it is skipped, by whichever scheduler."""
        record = self.record("skipped", reason)
        if not self.write("claims", name, record):
            claim = self.read("claims", name)
            if claim is not None and claim.state != "skipped":
                return False
            record = claim or record
        if self.write("outcomes", name, record):
            print_line(f"schedule: {name} is skipped: {sanitize(record.reason)}")
        return True

    def url(self, kind: str, name: str) -> str:
        """URL of an object of a tick."""
        return storage.join(self.folder, kind, f"{name}.json")


def _is_time(name: str) -> bool:
    try:
        tick_of(name)
    except ValueError:
        return False
    return True
