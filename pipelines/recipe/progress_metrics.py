"""Turns the progress of stages into metrics for Ray: what is done, how fast, and when it last moved."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.metrics import RECORDER, Recorder

_STAGES = frozenset({"shard", "train", "distill", "sample", "score", "evaluate", "calibrate"})
"""First words of tasks that are measured; others, e.g. fits, are short."""

_RATE_S = 1.0
"""Shortest time over which a rate is measured, in seconds, except at the end of a task."""


@dataclass
class ProgressMetrics:
    """The progress of one command as metrics."""

    recorder: Recorder = field(default_factory=lambda: RECORDER)
    now: Callable[[], float] = time.monotonic
    _last: dict[str, tuple[float, int]] = field(default_factory=dict[str, tuple[float, int]])
    """Time and count of each task's last measured rate."""
    _seen: dict[str, int] = field(default_factory=dict[str, int])
    """Newest count of each task."""

    def update(self, task: str, done: int, total: int, unit: str) -> None:
        """Record that ``done`` of ``total`` units of a task are finished; the first call counts none.

        Args:
            task: a stage, with the model's name if there are several.
            done: units that are finished.
            total: units in all.
            unit: only ``images`` have a rate and a counter.
        """
        stage, _, model = task.partition(" ")
        if stage not in _STAGES:
            return
        now_s = self.now()
        before = self._seen.get(task)
        self._seen[task] = done
        if before is None or done < before:
            self._last[task] = (now_s, done)
        if before != done:
            self.recorder.set("genmod_progress_time_seconds", time.time(), stage, model)
        self.recorder.set("genmod_rows", done, stage, model)
        self.recorder.set("genmod_rows_planned", total, stage, model)
        if unit != "images" or before is None or done <= before:
            return
        self.recorder.add("genmod_images", done - before, stage, model)
        start_s, start = self._last[task]
        took_s = now_s - start_s
        if took_s >= _RATE_S or done >= total:
            rate = (done - start) / max(took_s, 1e-3)
            self.recorder.set("genmod_images_per_second", rate, stage, model)
            self._last[task] = (now_s, done)
