"""Progress for people on stderr: what is done, how fast, and when it will end."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``8 s``, ``2 min 05 s``, ``3 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@dataclass
class Progress:
    """Prints one line that renews itself on a terminal, and a line every few seconds elsewhere."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    every_s: float = 5.0
    """Between lines when the stream is not a terminal."""
    _begun: dict[str, tuple[float, int]] = field(default_factory=dict[str, tuple[float, int]])
    _printed_s: float = 0.0
    _open_line: bool = False

    def log(self, text: str) -> None:
        """A line of its own."""
        self._end_line()
        print(text, file=self.stream, flush=True)

    def update(self, task: str, done: int, total: int, unit: str, note: str = "") -> None:
        """``done`` of ``total`` units of a task; the first call for a task starts its clock."""
        now_s = time.monotonic()
        start_s, done_before = self._begun.setdefault(task, (now_s, done))
        gained, elapsed_s = done - done_before, now_s - start_s
        last = done >= total
        terminal = self.stream.isatty()
        if not last and now_s - self._printed_s < (0.2 if terminal else self.every_s):
            return
        self._printed_s = now_s
        share = done / total if total else 1.0
        text = f"  {task}: {done:,}/{total:,} {unit} ({share:.0%})"
        if last:
            text += f", took {duration(elapsed_s)}"
        elif gained > 0 and elapsed_s > 0:
            rate = gained / elapsed_s
            text += f", {rate:,.0f} {unit}/s" if rate >= 10 else f", {rate:.1f} {unit}/s"
            text += f", {duration((total - done) / rate)} left"
        else:
            text += ", starting"
        text += f"  {note}" if note else ""
        if not terminal:
            print(text, file=self.stream, flush=True)
            return
        print(f"\r\x1b[K{text}", end="", file=self.stream, flush=True)
        self._open_line = True
        if last:
            self._end_line()

    def _end_line(self) -> None:
        if self._open_line:
            print(file=self.stream, flush=True)
            self._open_line = False
