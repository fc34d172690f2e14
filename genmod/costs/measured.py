"""Seconds of a call that works on a batch, measured by doing it a few times on this machine.

A call is timed at the batch size that the work will have, or, if that takes too long, at two smaller ones and
extrapolated. The first call at each size is a warm-up: it allocates memory and chooses kernels.

Other load on the machine must not count. A call of one thread takes as long as its CPU time on a core of
its own, so the smaller of wall time and CPU time counts; with several threads that is the wall time.
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

_GROWTH = 4
"""Factor between the batch sizes that are tried."""


@dataclass(frozen=True)
class CallTime:
    """Time of a call at its batch size."""

    first_s: float
    """What the first call takes longer."""
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


@contextmanager
def torch_threads(threads: int) -> Generator[None]:
    """Let torch compute with this many threads inside the block."""
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
        budget_s: about how long to measure; two calls at :data:`FIRST_ROWS` take as long as they take.
    """
    start_s = time.perf_counter()
    size = min(rows, FIRST_ROWS)
    cold_s, usual_s = _seconds(call, size), _seconds(call, size)
    first_s = max(0.0, cold_s - usual_s)
    points = [(size, usual_s)]
    # Grow the batch while the next size, were it in proportion, fits the budget.
    while size < rows:
        larger = min(rows, _GROWTH * size)
        if usual_s * larger / size > budget_s / 3:
            break
        call(larger)
        size, usual_s = larger, _seconds(call, larger)
        points.append((size, usual_s))
    # Repeat at the size that was reached.
    seconds = [usual_s]
    while len(seconds) < REPETITIONS and time.perf_counter() - start_s + usual_s < budget_s:
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
