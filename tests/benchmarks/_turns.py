"""CPU seconds of several calls, taken in turns: each comes first, second and so on equally often."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

Taken = list[list[float]]
"""CPU seconds of each call, by round."""


def cpu_s(call: Callable[[], object]) -> float:
    """CPU seconds of this process in one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def in_turns(calls: Sequence[Callable[[], object]], rounds: int) -> Taken:
    """So many rounds, in an order that turns, after one that is not kept."""
    timings: Taken = []
    for number in range(rounds + 1):
        seconds = [0.0] * len(calls)
        for place in range(len(calls)):
            which = (place + number) % len(calls)
            seconds[which] = cpu_s(calls[which])
        timings.append(seconds)
    return timings[1:]


def compared(timings: Taken, mine: int, theirs: int, done: float) -> dict[str, object]:
    """Rates of two calls that do so much, and the median and quartiles of the rounds' ratios."""
    ratios = sorted(seconds[theirs] / seconds[mine] for seconds in timings)
    return {
        "ours": done / statistics.median(seconds[mine] for seconds in timings),
        "peer": done / statistics.median(seconds[theirs] for seconds in timings),
        "ratio": statistics.median(ratios),
        "quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
    }
