"""Time of a call that processes a batch, measured by repetition on this machine.

A call is timed at its real batch size, or, if that takes too long, at two smaller sizes and extrapolated.
The first call at a size is a warm-up if it is short: it allocates memory and chooses kernels.

Other load on the machine must not count. On an idle core a call with one thread takes its CPU time, so the
smaller of wall time and CPU time counts. With several threads that is the wall time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

REPETITIONS = 15
"""Most calls that are timed at one size."""

FIRST_ROWS = 4
"""Batch size of the first call."""

_WARM_UP_S = 0.2
"""A call that takes longer than this needs no warm-up."""

_GROWTH = 4
"""Factor between the batch sizes that are tried."""

_WALL_PER_CPU = 4
"""Wall time of a measurement on a busy machine, in CPU time."""


@dataclass(frozen=True)
class CallTime:
    """Time of a call at its batch size."""

    first_s: float
    """Additional time of the first call."""
    usual_s: float
    """Median of the calls after it."""


class Clock:
    """Measures laps: the smaller of wall time and CPU time of this process, in seconds."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def lap(self) -> float:
        """Seconds since the last lap or the start."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        seconds = min(wall_s - self._wall_s, cpu_s - self._cpu_s)
        self._wall_s, self._cpu_s = wall_s, cpu_s
        return seconds


class Budget:
    """Time that a measurement may take: CPU time of this process, or four times as much wall time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def left_s(self) -> float:
        """Seconds that are left; below 0 when the budget is exceeded."""
        cpu_s = time.process_time() - self._cpu_s
        wall_s = time.perf_counter() - self._wall_s
        return self._seconds - max(cpu_s, wall_s / _WALL_PER_CPU)


@contextmanager
def torch_threads(threads: int) -> Generator[None]:
    """Set the number of torch's threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def call_time(call: Callable[[int], object], rows: int, budget_s: float) -> CallTime:
    """Time of ``call(rows)``.

    Args:
        call: works on a batch of the given size.
        rows: batch size of interest.
        budget_s: approximate CPU time of the measurement; at least two calls at :data:`FIRST_ROWS` rows.
    """
    budget = Budget(budget_s)
    size = min(rows, FIRST_ROWS)
    cold_s, usual_s = _seconds(call, size), _seconds(call, size)
    first_s = max(0.0, cold_s - usual_s)
    points = [(size, usual_s)]
    # Grow the batch while a call of the next size, were it in proportion, fits twice the budget: most calls
    # take less than in proportion, and one size alone says little of larger ones.
    while size < rows and usual_s * min(rows, _GROWTH * size) / size <= 2 * budget_s:
        size = min(rows, _GROWTH * size)
        usual_s = _seconds(call, size)
        if usual_s < _WARM_UP_S:
            usual_s = _seconds(call, size)
        points.append((size, usual_s))
    # Repeat at the size that was reached.
    seconds = [usual_s]
    while len(seconds) < REPETITIONS and budget.left_s() > usual_s:
        seconds.append(_seconds(call, size))
    points[-1] = size, statistics.median(seconds)
    return CallTime(first_s, extrapolated(points, rows))


def extrapolated(points: list[tuple[int, float]], rows: int) -> float:
    """Seconds at a batch size by the line through the last two of (batch size, seconds).

    With one point, or a line that does not rise, seconds are in proportion to the batch size.

    >>> extrapolated([(4, 1.0), (16, 2.5)], 32)
    4.5
    >>> extrapolated([(4, 1.0)], 8)
    2.0
    """
    size, seconds = points[-1]
    if size >= rows:
        return seconds
    slope = seconds / size
    if len(points) > 1:
        smaller, smaller_s = points[-2]
        slope = (seconds - smaller_s) / (size - smaller)
    return seconds + slope * (rows - size) if slope > 0 else seconds * rows / size


def _seconds(call: Callable[[int], object], rows: int) -> float:
    clock = Clock()
    call(rows)
    return clock.lap()
