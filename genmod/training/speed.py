"""The speed of training between two logged points."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")

_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024
"""Unit of the peak memory that the system reports."""


class SpeedClock:
    """Measures wall time, CPU time of this process, waiting for data, and images since the last restart."""

    def __init__(self, nimg: int) -> None:
        self.restart(nimg)

    def restart(self, nimg: int) -> None:
        """Measure from now on, at ``nimg`` images."""
        self._start_s, self._start_cpu_s = time.monotonic(), time.process_time()
        self._start_nimg = nimg
        self._data_wait_s = 0.0

    def next_of(self, batches: Iterator[T]) -> T:
        """The next batch; the time until it is there counts as waiting for data."""
        start_s = time.monotonic()
        batch = next(batches)
        self._data_wait_s += time.monotonic() - start_s
        return batch

    def timing(self, nimg: int) -> dict[str, float]:
        """Images per second, wall time, CPU time and waiting since the restart, and the peak memory."""
        wall_s = time.monotonic() - self._start_s
        cpu_s = time.process_time() - self._start_cpu_s
        images = nimg - self._start_nimg
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "images_per_s": images / max(wall_s, 1e-9),
            "wall_s": wall_s,
            "cpu_s": cpu_s,
            "data_wait_s": self._data_wait_s,
            "peak_memory_bytes": float(peak * _MAXRSS_BYTES),
        }
