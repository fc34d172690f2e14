"""The progress protocol of all jobs."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives how far a job is."""

    def update(self, task: str, done: int, total: int, unit: str, note: str = "") -> None:
        """Report progress.

        Args:
            task: a stage, with the model's name if there are several, e.g. ``train vae``.
            done: units that are finished.
            total: units in all.
            unit: plural noun, e.g. ``images``.
            note: more to show, e.g. the current losses.
        """
        ...


class NoProgress:
    """Ignores progress: the default of every job."""

    def update(self, task: str, done: int, total: int, unit: str, note: str = "") -> None:
        """Ignore what the job reports."""


NO_PROGRESS = NoProgress()
