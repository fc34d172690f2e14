"""Cron lines and time zones: checks for people, and the times of ticks, by the library cronsim."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError

from genmod.errors import did_you_mean, sanitize

_FIELDS = 5
_SOME_DAY = datetime(2024, 1, 1, tzinfo=UTC)
_EXAMPLE = "e.g. '0 3 * * *': minute, hour, day of the month, month, day of the week"


def check_cron(line: str) -> str:
    """A cron line with single spaces. ValueError if it is none, or never matches."""
    fields = line.split()
    text = " ".join(fields)
    if len(fields) != _FIELDS:
        raise ValueError(
            f"{sanitize(line)!r} has {len(fields)} fields, expected {_FIELDS}, {_EXAMPLE}"
        )
    if not re.fullmatch(r"[0-9A-Za-z*,/#-]+( [0-9A-Za-z*,/#-]+)*", text):
        raise ValueError(f"{sanitize(line)!r} has characters that cron does not know; {_EXAMPLE}")
    try:
        times = CronSim(text, _SOME_DAY)
    except CronSimError as error:
        problem = str(error).removeprefix("Bad ")
        if problem == "day-of-month" and next(_lenient(fields), None) is not None:
            raise ValueError(_never(text)) from None
        raise ValueError(f"{text!r}: wrong {problem}; {_EXAMPLE}") from None
    if next(times, None) is None:
        raise ValueError(_never(text))
    return text


def check_timezone(name: str) -> str:
    """The name of a time zone. ValueError with the nearest name if there is none of that name."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        known = available_timezones()
        by_city = [zone for zone in sorted(known) if zone.rpartition("/")[2] == name.title()]
        hint = did_you_mean(name, by_city or known)
        hint = hint if len(hint) < 200 else "e.g. 'UTC' or 'Europe/Berlin'"
        raise ValueError(f"no time zone {sanitize(name)!r}; {hint}") from None
    return name


def ticks_after(cron: str, timezone: str, after: datetime) -> Iterator[datetime]:
    """The ticks of a checked cron line later than a time, in UTC, each once, in order.

    >>> next(ticks_after("0 3 * * *", "Europe/Berlin", datetime(2026, 7, 1, tzinfo=UTC))).isoformat()
    '2026-07-01T01:00:00+00:00'
    """
    last = after
    # Start a day early: the library takes a time that occurs twice for the first of the two.
    start = (after - timedelta(days=1)).astimezone(ZoneInfo(timezone))
    for time in CronSim(cron, start):
        utc = time.astimezone(UTC)
        if utc > last:
            last = utc
            yield utc


def newest_tick(cron: str, timezone: str, until: datetime) -> datetime | None:
    """The latest tick that is not later than a time; None if there was none in eight years."""
    for days in (1, 8, 32, 367, 8 * 366):
        newest = None
        for tick in ticks_after(cron, timezone, until - timedelta(days=days)):
            if tick > until:
                break
            newest = tick
        if newest is not None:
            return newest
    return None


def _lenient(fields: list[str]) -> Iterator[datetime]:
    """The line's times in any month: empty if another field than the months is wrong."""
    try:
        yield from CronSim(" ".join([*fields[:3], "*", fields[4]]), _SOME_DAY)
    except CronSimError:
        return


def _never(text: str) -> str:
    return f"{text!r} never fires: its months have no such day; change the day of the month or the months"
