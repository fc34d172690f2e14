"""Losses of the steps since the last logged average: kept on the device, averaged over all ranks on demand.

A value that is not finite stops training, and the error names the exact step. Letters: K quantities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from genmod.config import Config
from genmod.errors import DataError, TrainingDiverged
from genmod.training.metric_point import MAX_METRICS, MetricName, MetricValues, Nimg
from genmod.world import World


class StepMetricsDocument(Config):
    """What a checkpoint contains of the step metrics."""

    keys: tuple[MetricName, ...] = Field(max_length=MAX_METRICS)
    reduced: tuple[tuple[Nimg, MetricValues], ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = set(self.keys)
        for nimg, row in self.reduced:
            if not row.keys() <= known:
                raise ValueError(f"the step that ended at {nimg:,} images has an unknown quantity")
        return self


@dataclass
class StepMetrics:
    """One row for each step: ``nimg`` and a value for each quantity of the phases that took part."""

    keys: tuple[str, ...] = ()
    """``phase/quantity``; a phase returns the same quantities at each of its turns."""
    reduced: list[tuple[int, dict[str, float]]] = field(
        default_factory=list[tuple[int, dict[str, float]]]
    )
    """Means over all ranks of earlier steps, equal on all ranks."""
    pending: list[tuple[int, tuple[str, ...], Tensor]] = field(
        default_factory=list[tuple[int, tuple[str, ...], Tensor]]
    )
    """This rank's values of the latest steps."""

    def add(self, nimg: int, keys: Sequence[str], values_K: Tensor) -> None:
        """Record the step that ended at ``nimg``. Does not synchronize with the device."""
        keys = tuple(keys)
        if not self.pending or self.pending[-1][1] != keys:
            phases = {_phase(key) for key in keys}
            known = {_phase(key) for key in self.keys}
            self.keys += tuple(key for key in keys if _phase(key) not in known)
            expected = tuple(key for key in self.keys if _phase(key) in phases)
            if sorted(expected) != sorted(keys):  # those of a checkpoint, or of a changed loss
                raise DataError(
                    f"the losses of the step that ended at {nimg:,} images are {', '.join(keys)}, those "
                    f"before were {', '.join(expected)}; remove the checkpoints, and train from the start"
                )
        self.pending.append((nimg, keys, values_K))

    def reduce(self, world: World) -> None:
        """Average the pending steps over all ranks. Collective: every rank calls it.

        Raises:
            TrainingDiverged: on all ranks alike, if a value is not finite.
        """
        if not self.pending:
            return
        steps, self.pending = self.pending, []
        means = iter(world.mean(torch.cat([values_K for *_, values_K in steps])).tolist())
        for nimg, keys, _ in steps:
            row = {key: next(means) for key in keys}
            if not all(map(math.isfinite, row.values())):
                raise TrainingDiverged(_description(nimg, row))
            self.reduced.append((nimg, row))

    def average(self, world: World) -> dict[str, float]:
        """Mean of each quantity over the steps since the last call that computed it. Collective.

        Raises:
            TrainingDiverged: on all ranks alike, if a value is not finite.
        """
        self.reduce(world)
        rows, self.reduced = self.reduced, []
        columns = {key: [row[key] for _, row in rows if key in row] for key in self.keys}
        return {key: math.fsum(column) / len(column) for key, column in columns.items() if column}

    def terms_of(self, phase: str) -> tuple[str, ...]:
        """Names of a phase's quantities, without the phase."""
        prefix = f"{phase}/"
        return tuple(key.removeprefix(prefix) for key in self.keys if key.startswith(prefix))

    def as_json(self) -> dict[str, Any]:
        """The reduced rows as JSON values. Call :meth:`reduce` first."""
        assert not self.pending, "reduce first"
        return {"keys": list(self.keys), "reduced": self.reduced}

    @classmethod
    def from_document(cls, document: StepMetricsDocument) -> Self:
        """The inverse of :meth:`as_json`."""
        return cls(document.keys, [(nimg, dict(row)) for nimg, row in document.reduced])


def _phase(key: str) -> str:
    return key.partition("/")[0]


def _description(nimg: int, row: Mapping[str, float]) -> str:
    """Which quantity of which step is not finite, with the phase's other quantities."""
    bad = next(key for key, value in row.items() if not math.isfinite(value))
    phase = _phase(bad)
    values = [
        f"{key.removeprefix(f'{phase}/')} {value:.6g}"
        for key, value in row.items()
        if _phase(key) == phase
    ]
    return (
        f"training diverged: {bad} is not finite in the step that ended at {nimg:,} images "
        f"(phase {phase}: {', '.join(values)})"
    )
