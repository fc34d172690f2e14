"""Losses of the steps since the last averages: kept on the device, compared over all ranks when asked for.

A number that is not finite stops training, and names the very step. Letters: K quantities of a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from genmod.errors import TrainingDiverged
from genmod.world import World

HINT = "lower train.optim.lr, lengthen train.optim.warmup_nimg, or set train.optim.clip_norm"
"""To somebody whose training diverged."""


@dataclass
class StepMetrics:
    """Rows of (nimg, a number for each quantity of the phases that took part)."""

    keys: tuple[str, ...] = ()
    """``phase/quantity``; a phase gives the same at each of its turns."""
    settled: list[tuple[int, dict[str, float]]] = field(
        default_factory=list[tuple[int, dict[str, float]]]
    )
    """World means of earlier steps, alike on all ranks."""
    open: list[tuple[int, tuple[str, ...], Tensor]] = field(
        default_factory=list[tuple[int, tuple[str, ...], Tensor]]
    )
    """This rank's numbers of the latest steps."""

    def add(self, nimg: int, keys: Sequence[str], values_K: Tensor) -> None:
        """Note a step that ended at ``nimg``; waits for nothing."""
        keys = tuple(keys)
        if not self.open or self.open[-1][1] != keys:
            phases = {_phase(key) for key in keys}
            known = {_phase(key) for key in self.keys}
            self.keys += tuple(key for key in keys if _phase(key) not in known)
            mine = tuple(key for key in self.keys if _phase(key) in phases)
            assert sorted(mine) == sorted(keys), "a phase gave other terms than before"
        self.open.append((nimg, keys, values_K))

    def settle(self, world: World) -> None:
        """Average the latest steps over all ranks, which must all be here.

        Raises:
            TrainingDiverged: on all ranks alike, if a number is not finite.
        """
        if not self.open:
            return
        latest, self.open = self.open, []
        means = iter(world.mean(torch.cat([values_K for *_, values_K in latest])).tolist())
        for nimg, keys, _ in latest:
            row = {key: next(means) for key in keys}
            if not all(map(math.isfinite, row.values())):
                raise TrainingDiverged(f"{_story(nimg, row)}; {HINT}")
            self.settled.append((nimg, row))

    def close(self, world: World) -> dict[str, float]:
        """The average of all steps since the last time, by key, where there was one; then begin anew."""
        self.settle(world)
        rows, self.settled = self.settled, []
        columns = {key: [row[key] for _, row in rows if key in row] for key in self.keys}
        return {key: math.fsum(column) / len(column) for key, column in columns.items() if column}

    def terms_of(self, phase: str) -> tuple[str, ...]:
        """Names of a phase's quantities."""
        prefix = f"{phase}/"
        return tuple(key.removeprefix(prefix) for key in self.keys if key.startswith(prefix))

    def as_json(self) -> dict[str, Any]:
        """What is settled, as JSON values."""
        assert not self.open, "settle first"
        return {"keys": list(self.keys), "settled": self.settled}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """What :meth:`as_json` gave."""
        rows = [
            (int(nimg), {key: float(value) for key, value in row.items()})
            for nimg, row in values["settled"]
        ]
        return cls(tuple(values["keys"]), rows)


def _phase(key: str) -> str:
    return key.partition("/")[0]


def _story(nimg: int, row: Mapping[str, float]) -> str:
    bad = next(key for key, value in row.items() if not math.isfinite(value))
    phase = _phase(bad)
    metadata = [f"{key.removeprefix(f'{phase}/')} {value:.6g}" for key, value in row.items()
             if _phase(key) == phase]  # fmt: skip
    return (
        f"training diverged: {bad} is not finite in the step that ended at {nimg:,} images "
        f"(phase {phase}: {', '.join(metadata)})"
    )
