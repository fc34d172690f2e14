"""The progress protocol of all jobs."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives how far a job is."""

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
        """Report progress.

        Args:
            task: a stage, with the model's name if there are several, e.g. ``train vae``.
            done: units that are finished.
            total: units in all.
            unit: plural noun, e.g. ``images``.
            note: more to show, e.g. the current losses.
            left_s: time left in seconds, where the job knows it better than the rate of its units tells;
                infinite as long as it does not.
        """
        ...

    def log(self, text: str) -> None:
        """Print a line for people."""
        ...


class NoProgress:
    """Ignores progress: the default of every job."""

    def update(self, *_: object, **__: object) -> None:
        """Ignore what the job reports."""

    def log(self, text: str) -> None:
        """Ignore what the job says."""


NO_PROGRESS = NoProgress()
