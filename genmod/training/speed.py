"""The speed of training between two logged points."""

from __future__ import annotations

import time


class SpeedClock:
    """Measures wall time, CPU time of this process, and images since the last restart."""

    def __init__(self, nimg: int) -> None:
        self.restart(nimg)

    def restart(self, nimg: int) -> None:
        """Measure from now on, at ``nimg`` images."""
        self._start_s, self._start_cpu_s = time.monotonic(), time.process_time()
        self._start_nimg = nimg

    def timing(self, nimg: int) -> dict[str, float]:
        """``images_per_s``, ``wall_s`` and ``cpu_s`` since the restart."""
        wall_s = time.monotonic() - self._start_s
        cpu_s = time.process_time() - self._start_cpu_s
        images = nimg - self._start_nimg
        return {"images_per_s": images / max(wall_s, 1e-9), "wall_s": wall_s, "cpu_s": cpu_s}
