"""Progress bars on a terminal: one line per task, below everything that is printed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from pipelines.recipe.time_left import TimeLeft, left_text, rate_text

if TYPE_CHECKING:  # only a terminal needs rich
    from rich.progress import Progress, Task, TaskID

_OTHERS = 62
"""Columns of a line that are not the bar."""


class Counts(NamedTuple):
    """How far a task is."""

    done: int
    total: int
    unit: str
    note: str
    left_s: float | None = None
    """Seconds, if the job knows them; else they are estimated from the rate."""


class Bars:
    """The bars of the tasks in progress. The caller serialises the calls.

    The refreshing thread of rich reads only the fields of a bar, so that no lock is held while another one is
    taken.
    """

    def __init__(self, stream: TextIO, now: Callable[[], float]) -> None:
        self._stream, self._now = stream, now
        self._progress: Progress | None = None
        self._ids: dict[str, TaskID] = {}

    def show(self, task: str, counts: Counts, clock: TimeLeft) -> None:
        """Add or update the bar of a task."""
        if self._progress is None:
            self._progress = _start(self._stream, self._now)
        now_s, rate = self._now(), clock.rate()
        left_s, least_s = counts.left_s, 0.0
        if left_s is None:
            left_s, least_s = (clock.left_s(at_s, counts.total) for at_s in (now_s, float("inf")))
        fields: dict[str, Any] = {
            "count": f"{counts.done:,}/{counts.total:,} {counts.unit}",
            "pace": "" if rate is None else f"{rate_text(rate)}/s",
            "ends_s": None if left_s is None else now_s + left_s,
            "least_s": least_s,
            "is_bound": counts.left_s is None and clock.is_bound,
            "note": counts.note,
        }
        if task not in self._ids:
            self._ids[task] = self._progress.add_task(task, total=counts.total, **fields)
        self._progress.update(self._ids[task], completed=counts.done, total=counts.total, **fields)

    def remove(self, task: str) -> None:
        """Remove the bar of a task, if it has one; the last one frees the terminal."""
        if self._progress is not None and task in self._ids:
            self._progress.remove_task(self._ids.pop(task))
            if not self._ids:
                self.close()

    def print(self, line: str) -> bool:
        """Print a line above the bars. Returns False if there are none."""
        if self._progress is None:
            return False
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        return True

    def close(self) -> None:
        """Remove all bars and free the terminal."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = None
        self._ids.clear()


def _start(stream: TextIO, now: Callable[[], float]) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn
    from rich.table import Column
    from rich.text import Text

    class LeftColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            ends_s, least_s = task.fields["ends_s"], task.fields["least_s"]
            left_s = None if ends_s is None else max(ends_s - now(), least_s)
            return Text(left_text(left_s, task.fields["is_bound"]), style="progress.remaining")

    console = Console(file=stream)
    width = max(8, min(30, console.width - _OTHERS))
    progress = Progress(
        TextColumn("  {task.description}", markup=False),
        BarColumn(bar_width=width),
        TaskProgressColumn(),
        TextColumn("{task.fields[count]}", markup=False),
        TextColumn("{task.fields[pace]}", markup=False),
        LeftColumn(),
        TextColumn(
            "{task.fields[note]}",
            markup=False,
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
        console=console,
        expand=True,
        transient=True,
        refresh_per_second=4,
        redirect_stdout=False,  # it may be a file; the bars are on stderr
        redirect_stderr=False,  # ProgressDisplay does it
    )
    progress.start()
    return progress
