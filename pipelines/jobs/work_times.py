"""What the units of bulk jobs cost, as measured by the workers: the time left, and where the time went.

Models of unlike cost share a pool, and their units alternate. So the time left of a job is not its rows over
its own rate, which changes whenever another job ends: it is the work that the pool does until the job's last
unit, each job's rows weighted by their measured cost.
"""

from __future__ import annotations

import heapq
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from genmod.stopwatch import ENCODE, FILTER, FIT, MODEL, READ, START, WRITE

_MEMORY = 0.97
"""Weight of older units for each new one, in the mean cost of a row."""

_SILENT = 3.0
"""A worker without a result for so many times the longest unit is taken for lost."""

_SILENT_S = 5.0
"""Time that is added to it, in seconds."""

_SIMULATED = 1000
"""Units whose order is simulated to find when each job ends; of those before them only the sum counts."""

_PARTS = (MODEL, FILTER, FIT, READ, ENCODE, WRITE)
"""Parts of a summary, in this order."""


class Left(NamedTuple):
    """What is left of a job."""

    title: str
    name: str
    """Of its model."""
    units: int
    rows: int


@dataclass
class _Mean:
    """Mean cost of a row, of the recent units."""

    rows: float = 0.0
    seconds: float = 0.0

    def add(self, rows: int, seconds: float) -> None:
        self.rows = _MEMORY * self.rows + rows
        self.seconds = _MEMORY * self.seconds + seconds

    @property
    def row_s(self) -> float:
        return self.seconds / self.rows


@dataclass
class RowCosts:
    """Seconds that one worker takes for a row of each job, without its start."""

    _titles: dict[str, _Mean] = field(default_factory=dict[str, _Mean])
    _names: dict[str, _Mean] = field(default_factory=dict[str, _Mean])

    def add(self, title: str, name: str, rows: int, seconds: float) -> None:
        """Note a unit of a job."""
        if rows > 0:
            self._titles.setdefault(title, _Mean()).add(rows, seconds)
            self._names.setdefault(name, _Mean()).add(rows, seconds)

    def row_s(self, title: str, name: str) -> float | None:
        """Seconds of a row; before the job's first unit, of other jobs of its model, if there were any."""
        mean = self._titles.get(title) or self._names.get(name)
        return None if mean is None else mean.row_s

    def knows(self, left: Left) -> bool:
        """Whether a unit of this model is done."""
        return self.row_s(left.title, left.name) is not None

    def work_s(self, left: Left, share: float = 1.0) -> float:
        """Seconds of a share of what is left of a job, for one worker."""
        return share * left.rows * (self.row_s(left.title, left.name) or 0.0)


def _turns(jobs: Sequence[Left]) -> Iterator[str]:
    """Titles of units in the order in which workers take them: one of each job in turn."""
    for turn in range(max((job.units for job in jobs), default=0)):
        yield from (job.title for job in jobs if turn < job.units)


def _skipped_turns(units: Iterable[int]) -> int:
    """The least number of turns after which at most ``_SIMULATED`` of the jobs' units are left."""
    units = list(units)
    return bisect_left(
        range(max(units, default=0)),
        -_SIMULATED,
        key=lambda turns: -sum(max(0, number - turns) for number in units),
    )


@dataclass
class WorkTimes:
    """Times of the units of jobs that share a pool of workers."""

    costs: RowCosts
    """Shared with the jobs that come before and after."""
    now: Callable[[], float] = time.monotonic
    _workers: int = 1
    """That are expected."""
    _start_s: float = 0.0
    """When the pool started."""
    _first_s: float | None = None
    """When its first result came."""
    _longest_s: float = 0.0
    """Wall time of its longest unit."""
    _last_s: dict[str, float] = field(default_factory=dict[str, float])
    """When the latest result of each worker came."""
    _turns: Iterator[str] = field(default_factory=lambda: iter(()))
    """Titles of the units that no worker has yet, in order."""
    _current: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    """Title of the unit that each worker is at; None at the end."""
    _busy_s: float = 0.0
    _cycles_s: float = 0.0
    """Wall time of units after a worker's first one, and time between their results."""
    _seconds: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    """Seconds of each part, by title."""
    _wall_s: dict[str, float] = field(default_factory=dict[str, float])
    """Wall time of the units, by title."""
    _pools_s: float = 0.0
    """Time of all workers of pools that have ended."""

    def started(self, workers: int, jobs: Sequence[Left]) -> None:
        """A pool with so many workers starts on these jobs."""
        self.ended()
        self._turns = _turns(jobs)
        self._workers, self._start_s, self._first_s = max(1, workers), self.now(), None
        for _ in range(self._workers):  # the first units of the workers
            next(self._turns, None)

    def ended(self) -> None:
        """The pool has ended, if there was one."""
        self._pools_s += len(self._last_s) * (self.now() - self._start_s)
        self._last_s, self._current, self._longest_s = {}, {}, 0.0

    def add(self, title: str, name: str, result: Mapping[str, Any]) -> None:
        """Note the result of a unit."""
        if "wall_s" not in result:
            return
        now_s, wall_s, seconds = self.now(), float(result["wall_s"]), result["seconds"]
        work_s = max(0.0, wall_s - seconds.get(START, 0.0) - seconds.get(FIT, 0.0))
        self.costs.add(title, name, int(result["num_rows"]), work_s)
        worker = str(result["worker"])
        if worker in self._last_s:
            self._busy_s = _MEMORY * self._busy_s + wall_s
            self._cycles_s = _MEMORY * self._cycles_s + now_s - self._last_s[worker]
        self._last_s[worker], self._current[worker] = now_s, next(self._turns, None)
        self._first_s = now_s if self._first_s is None else self._first_s
        self._longest_s = max(self._longest_s, wall_s)
        parts = self._seconds.setdefault(title, {})
        for part, part_s in seconds.items():
            parts[part] = parts.get(part, 0.0) + part_s
        self._wall_s[title] = self._wall_s.get(title, 0.0) + wall_s

    def left_s(self, title: str, jobs: Sequence[Left]) -> float:
        """Seconds until a job is done; infinite before each job of the pool has finished a unit.

        Args:
            title: of the job.
            jobs: what is left of the jobs that share the pool; their units alternate.
        """
        jobs = [job for job in jobs if job.units]
        if all(job.title != title for job in jobs):
            return 0.0
        if not self._last_s or not all(self.costs.knows(job) for job in jobs):
            return math.inf
        return self._ends_s(jobs)[title]

    def all_left_s(self, jobs: Sequence[Left], later: Sequence[Left] = ()) -> float:
        """Seconds until all jobs of the pool are done, and jobs after them on another pool."""
        if self._first_s is None or not all(self.costs.knows(job) for job in (*jobs, *later)):
            return math.inf
        jobs = [job for job in jobs if job.units]
        left_s = max(self._ends_s(jobs).values(), default=0.0)
        if later:
            start_s = max(0.0, self._first_s - self._start_s - self._longest_s)
            later_s = sum(self.costs.work_s(job) for job in later)
            workers = min(self._active(), sum(job.units for job in later))
            left_s += start_s + later_s * self._overhead() / max(1, workers)
        return left_s

    def _ends_s(self, jobs: Sequence[Left]) -> dict[str, float]:
        """Seconds until each job is done, by title: the workers take the next units one after the other."""
        overhead, pending = self._overhead(), {job.title: job.units for job in jobs}
        unit_s = {job.title: self.costs.work_s(job, 1 / job.units) * overhead for job in jobs}
        ends_s = dict.fromkeys(pending, 0.0)
        free_s = [0.0] * self._active()
        for number, (title, since_s) in enumerate(self._in_progress(len(free_s), list(pending))):
            if pending.get(title, 0) > 0:
                pending[title] -= 1
                free_s[number] = max(0.0, unit_s[title] - since_s)
                ends_s[title] = max(ends_s[title], free_s[number])
        skipped = _skipped_turns(pending.values())
        turns_s = dict.fromkeys(pending, 0.0)
        for title, units in pending.items():
            turns = min(units, skipped)
            turns_s[title] = sum(
                min(other, turns) * unit_s[name] for name, other in pending.items()
            ) / len(free_s)
            if 0 < units <= skipped:
                ends_s[title] = max(ends_s[title], turns_s[title] + sum(free_s) / len(free_s))
        free_s = [at_s + max(turns_s.values(), default=0.0) for at_s in free_s]
        heapq.heapify(free_s)
        for turn in range(skipped, max(pending.values(), default=0)):
            for title in [title for title, units in pending.items() if turn < units]:
                end_s = free_s[0] + unit_s[title]
                heapq.heapreplace(free_s, end_s)
                ends_s[title] = max(ends_s[title], end_s)
        return ends_s

    def _in_progress(self, workers: int, titles: Sequence[str]) -> list[tuple[str, float]]:
        """The job of each worker's unit, and for how many seconds the worker has been at it."""
        now_s = self.now()
        heard = sorted(self._last_s, key=lambda worker: now_s - self._last_s[worker])[:workers]
        units = [(self._current[worker] or "", now_s - self._last_s[worker]) for worker in heard]
        # Workers without a result are at their first unit; it started with those of the others.
        since_s = 0.0 if self._first_s is None else now_s - self._first_s + self._longest_s / 2
        return units + [
            (titles[number % len(titles)], since_s) for number in range(workers - len(heard))
        ]

    def _overhead(self) -> float:
        """Time from result to result, in wall time of units."""
        return max(1.0, self._cycles_s / self._busy_s) if self._busy_s else 1.0

    def _active(self) -> int:
        """Workers at work. Those that are expected count until all had time for their first unit."""
        now_s, silent_s = self.now(), _SILENT * self._longest_s + _SILENT_S
        active = sum(now_s - last_s <= silent_s for last_s in self._last_s.values())
        is_early = self._first_s is None or now_s - self._first_s <= 2 * self._longest_s
        return max(1, active, self._workers if is_early else 0)

    def summary(self, title: str) -> str | None:
        """Where the time of a job's workers went, in one line; None if it had no units."""
        parts, wall_s = self._seconds.get(title), self._wall_s.get(title, 0.0)
        if not parts or wall_s <= 0:
            return None
        pools_s = self._pools_s + len(self._last_s) * (self.now() - self._start_s)
        own_s = max(wall_s, pools_s * wall_s / sum(self._wall_s.values()))
        shares = [(part, parts[part] / own_s) for part in _PARTS if part in parts]
        idle_s = own_s - wall_s + parts.get(START, 0.0)
        listed = [f"{part} {share:.0%}" for part, share in shares if share >= 0.005]
        listed.append(f"start and wait {idle_s / own_s:.0%}")
        return f"{title}: time of its workers: {', '.join(listed)}"
