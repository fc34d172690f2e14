"""Rate and time left of a task, from the moments at which it made progress."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

_POINTS = 512
"""Remembered moments. When there are more, every second one is dropped."""

_START_SHARE, _START_EVENTS = 1 / 8, 8
"""The first interval may be mostly start-up. It counts until the time since then is this share of it, or
until progress was made this often."""

_WINDOWS, _WINDOW_EVENTS, _WINDOW_BURSTS = (0.1, 0.2, 0.4, 0.8), 40, 3
"""Shares of the time over which the recent rate is measured: the first that has enough of both."""

_SHORT_S = 1e-6


def duration(seconds: float) -> str:
    """Seconds as text for people.

    >>> [duration(8), duration(125), duration(12_000)]
    ['8 s', '2 min 05 s', '3 h 20 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def rate_text(rate: float) -> str:
    """A rate with as many digits as a person reads.

    >>> [rate_text(12_345.6), rate_text(12.3), rate_text(1.26)]
    ['12,346', '12', '1.3']
    """
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def left_text(left_s: float | None, is_bound: bool) -> str:
    """The time left for people.

    >>> [left_text(None, False), left_text(125.0, True), left_text(8.0, False)]
    ['starting', 'under 2 min 05 s left', '8 s left']
    """
    if left_s is None or math.isinf(left_s):
        return "starting"
    return f"under {duration(max(1.0, left_s))} left" if is_bound else f"{duration(left_s)} left"


class TimeLeft:
    """Estimates the recent rate, apart from the start-up, for steady and for bursty progress.

    Workers that start together also finish together: progress arrives in bursts. The rate is therefore
    measured from the start of one burst to the start of another. Steady progress is bursts of one.

    >>> clock = TimeLeft(0.0, done=0)
    >>> for second in range(60, 80):  # a minute of start-up, then 5 units a second
    ...     clock.update(float(second), done=5 * (second - 59))
    >>> clock.rate(), clock.left_s(79.0, total=200)
    (5.0, 20.0)
    """

    def __init__(self, now_s: float, done: int) -> None:
        """The task starts, or resumes with ``done`` units."""
        self._points = [(now_s, done)]
        self._spacing_s = 0.0

    def update(self, now_s: float, done: int) -> None:
        """Record the units that are finished.

        Before the first progress, a second call marks the end of the start-up: the clock starts again. It
        also does where units are lost.
        """
        points = self._points
        if done < points[-1][1] or (done == points[-1][1] and len(points) == 1):
            self._points, self._spacing_s = [(now_s, done)], 0.0
        elif done > points[-1][1]:
            if len(points) > 3 and points[-1][0] - points[-2][0] < self._spacing_s:
                points.pop()
            points.append((now_s, done))
            if len(points) > _POINTS:
                del points[2:-1:2]
                self._spacing_s = 2 * (now_s - points[1][0]) / _POINTS

    def rate(self) -> float | None:
        """Units a second; None before the first progress."""
        estimate = self._estimate()
        return None if estimate is None else estimate[0]

    def left_s(self, now_s: float, total: int) -> float | None:
        """Seconds until ``total`` units are finished; None before the first progress."""
        estimate = self._estimate()
        if estimate is None:
            return None
        rate, since_s, gap_s = estimate
        waited_s = min(now_s - since_s, gap_s)
        return max(0.0, (total - self._points[-1][1]) / rate - waited_s)

    @property
    def is_bound(self) -> bool:
        """Whether the time left is an upper bound: the first interval may be mostly start-up, but counts."""
        if len(self._points) == 1:
            return False
        (start_s, _), (first_s, _), *_ = self._points
        few = len(self._points) - 1 <= _START_EVENTS
        return few and self._points[-1][0] - first_s < _START_SHARE * (first_s - start_s)

    def _estimate(self) -> tuple[float, float, float] | None:
        """Rate, start of the newest burst, and the usual time between bursts."""
        (start_s, start), *points = self._points
        if not points:
            return None
        first_s, (last_s, last) = points[0][0], points[-1]
        so_far = (last - start) / max(last_s - start_s, _SHORT_S), last_s, last_s - start_s
        if self.is_bound:
            return so_far
        # The rate over a recent window that contains some bursts.
        since_first_s = last_s - first_s
        least_s = _WINDOW_BURSTS * self._longest_gap_s(last_s - 0.3 * since_first_s)
        bursts, gap_s = [1], 0.0
        for share in (*_WINDOWS, 1.0):
            window_s = max(share * since_first_s, least_s)
            begin = next(i for i, point in enumerate(points, 1) if point[0] >= last_s - window_s)
            begin = min(begin, max(1, len(points) - _WINDOW_EVENTS))
            bursts, gap_s = _bursts(self._points, begin)
            if len(bursts) > _WINDOW_BURSTS:
                break
        if len(bursts) == 1:
            return so_far
        (end_s, _), (begin_s, _) = self._points[bursts[-1]], self._points[bursts[0]]
        finished = self._points[bursts[-1] - 1][1] - self._points[bursts[0] - 1][1]
        return finished / max(end_s - begin_s, _SHORT_S), end_s, gap_s

    def _longest_gap_s(self, begin_s: float) -> float:
        pairs = pairwise(now_s for now_s, _ in self._points[1:])
        return max((later - sooner for sooner, later in pairs if later >= begin_s), default=0.0)


def _bursts(points: Sequence[tuple[float, int]], begin: int) -> tuple[list[int], float]:
    """The points from ``begin`` that start a burst, and the usual gap: half of the time is in longer ones."""
    gaps_s = [later - sooner for (sooner, _), (later, _) in pairwise(points[begin:])]
    half_s, usual_s = sum(gaps_s) / 2, 0.0
    for gap_s in sorted(gaps_s, reverse=True):
        half_s -= gap_s
        if half_s <= 0:
            usual_s = gap_s
            break
    starts = [number for number, gap_s in enumerate(gaps_s, begin + 1) if gap_s > usual_s / 3]
    return [begin, *starts], usual_s
