"""Progress for people on stderr: what is finished, how fast, and the time left.

A terminal shows one bar per task; elsewhere each task prints a line every few seconds.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO

from genmod.errors import sanitize, sanitize_log
from genmod.terminal import print_line, unguarded
from pipelines.recipe.bars import Bars, Counts
from pipelines.recipe.progress_metrics import ProgressMetrics
from pipelines.recipe.time_left import TimeLeft, duration, left_text, rate_text

_REFRESH_S = 0.2
"""Between updates of a bar."""


@dataclass
class _Task:
    clock: TimeLeft
    counts: Counts
    start_s: float
    shown_s: float = float("-inf")


class ProgressDisplay:
    """Shows the progress of several tasks. Any thread may call it.

    Used as a context on a terminal, it prints what is written to ``sys.stderr`` (warnings, output of workers)
    above the bars, line by line and without control codes.

    Args:
        stream: where to write; ``sys.stderr`` if not given.
        every_s: seconds between lines of a task where the stream is not a terminal.
        now: a clock, in seconds.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        every_s: float = 5.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stream = sys.stderr if stream is None else stream
        self._bars = Bars(unguarded(self.stream), now) if _is_terminal(self.stream) else None
        self._every_s = every_s if self._bars is None else _REFRESH_S
        self._now = now
        self._tasks: dict[str, _Task] = {}
        self._finished: dict[str, Counts] = {}
        self._lock = threading.RLock()
        self._metrics = ProgressMetrics()
        self._latest = ""

    def latest(self) -> str:
        """How far the work is, in a few words: the last line or the last update of a task."""
        return self._latest

    def __enter__(self) -> ProgressDisplay:
        if self.stream.isatty() and sys.stderr is self.stream:
            sys.stderr = _Lines(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(sys.stderr, _Lines):
            sys.stderr.finish_line()
            sys.stderr = self.stream
        self.close()

    def log(self, text: str) -> None:
        """Print a line, above the bars if there are any."""
        with self._lock:
            self._latest = sanitize(text).strip()
            self._print(sanitize(text))

    def update(
        self,
        task: str,
        done: int,
        total: int,
        unit: str,
        note: str = "",
        *,
        left_s: float | None = None,
    ) -> None:
        """Show that ``done`` of ``total`` units of a task are finished.

        The first call starts the clock of the task. Before the first progress, a second call starts it again,
        so that the start-up does not count. ``left_s`` is the time left, if not estimated from the rate.
        """
        task, counts = sanitize(task), Counts(done, total, unit, sanitize(note), left_s)
        with self._lock:
            self._metrics.update(task, done, total, unit)
            self._latest = f"{task}: {_share(counts)}"
            now_s = self._now()
            if done >= total:
                self._finish(task, counts, now_s)
                return
            self._finished.pop(task, None)
            state = self._tasks.setdefault(task, _Task(TimeLeft(now_s, done), counts, now_s))
            state.clock.update(now_s, done)
            state.counts = counts
            if now_s - state.shown_s >= self._every_s:
                state.shown_s = now_s
                if self._bars is None:
                    self._print(_line(task, state, now_s))
                else:
                    self._bars.show(task, counts, state.clock)

    def close(self) -> None:
        """Remove the bars; unfinished tasks leave a line."""
        with self._lock:
            if self._bars is not None:
                self._bars.close()
                for task, state in self._tasks.items():
                    self._print(_line(task, state, self._now()))
            self._tasks.clear()

    def _finish(self, task: str, counts: Counts, now_s: float) -> None:
        state = self._tasks.pop(task, None)
        if state is None and self._finished.get(task) == counts:
            return
        self._finished[task] = counts
        if self._bars is not None:
            self._bars.remove(task)
        took = "" if state is None else f", took {duration(now_s - state.start_s)}"
        self._print(f"  {task}: {_share(counts)}{took}{_note(counts)}")

    def _print(self, line: str) -> None:
        if self._bars is None or not self._bars.print(line):
            print_line(line, self.stream)


class _Lines(io.TextIOBase):
    """Passes whole lines on to a display; each thread has an open line of its own."""

    def __init__(self, display: ProgressDisplay) -> None:
        self._display, self._open = display, threading.local()

    def write(self, text: str, /) -> int:
        *lines, self._open.text = (getattr(self._open, "text", "") + text).split("\n")
        for line in lines:
            for part in sanitize_log(line.rstrip("\r")).expandtabs().split("\n"):
                self._display.log(part)
        return len(text)

    def finish_line(self) -> None:
        if getattr(self._open, "text", ""):
            self.write("\n")

    def fileno(self) -> int:
        return self._display.stream.fileno()


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _line(task: str, state: _Task, now_s: float) -> str:
    counts, rate = state.counts, state.clock.rate()
    pace = "" if rate is None else f"{rate_text(rate)} {counts.unit}/s, "
    if counts.left_s is not None:
        left = left_text(counts.left_s, is_bound=False)
    else:
        left = left_text(state.clock.left_s(now_s, counts.total), state.clock.is_bound)
    return f"  {task}: {_share(counts)}, {pace}{left}{_note(counts)}"


def _share(counts: Counts) -> str:
    share = counts.done / counts.total if counts.total else 1.0
    return f"{counts.done:,}/{counts.total:,} {counts.unit} ({share:.0%})"


def _note(counts: Counts) -> str:
    return f"  {counts.note}" if counts.note else ""
