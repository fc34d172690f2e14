"""What the training loop is given besides the model: the stream of batches, and the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from genmod.interface.batch import Batch
from genmod.training.checkpoint import Checkpoints
from genmod.training.monitors.collapse import CollapseMonitor
from genmod.training.monitors.latents import LatentMonitor
from genmod.training.monitors.validation import SampleGrid, Validation
from genmod.training.plan import TrainConfig


class Stream(Protocol):
    """This rank's rows of each global batch, in order; ``index_B`` is their position in the stream."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def close(self) -> None:
        """Stop reading ahead; the stream ends here."""
        ...


Batches = Callable[[int], Stream]
"""Opens the stream at a position, given as images seen."""


@dataclass(frozen=True)
class Plan:
    """What training does besides the steps, and where its output goes."""

    config: TrainConfig
    seed: int
    root: str | None = None
    """URL of the folder for metrics and images; None writes neither."""
    checkpoints: Checkpoints | None = None
    validation: Validation | None = None
    grid: SampleGrid | None = None
    collapse: CollapseMonitor | None = None
    latents: LatentMonitor | None = None
