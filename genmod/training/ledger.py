"""Losses of the steps since the last averages: kept on the device, compared over all ranks when asked for.

A number that is not finite stops training, and names the very step. Letters: S steps, K quantities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from genmod.errors import TrainingDiverged
from genmod.world import World

ADVICE = "lower train.optim.lr, lengthen train.optim.warmup_nimg, or set train.optim.clip_norm"
"""To somebody whose training diverged."""


@dataclass
class Ledger:
    """Rows of (nimg, one number for each key)."""

    keys: tuple[str, ...] = ()
    """``phase/quantity``, the same at every step."""
    settled: list[tuple[int, list[float]]] = field(default_factory=list[tuple[int, list[float]]])
    """World means of earlier steps, alike on all ranks."""
    open: list[tuple[int, Tensor]] = field(default_factory=list[tuple[int, Tensor]])
    """This rank's numbers of the latest steps."""

    def add(self, nimg: int, keys: Sequence[str], values_K: Tensor) -> None:
        """Note a step that ended at ``nimg``; waits for nothing."""
        self.keys = self.keys or tuple(keys)
        assert self.keys == tuple(keys), "a phase gave other terms than before"
        self.open.append((nimg, values_K))

    def settle(self, world: World) -> None:
        """Average the latest steps over all ranks, which must all be here.

        Raises:
            TrainingDiverged: on all ranks alike, if a number is not finite.
        """
        if not self.open:
            return
        rows_SK = world.mean(torch.stack([values_K for _, values_K in self.open])).tolist()
        nimgs = [nimg for nimg, _ in self.open]
        self.open = []
        for nimg, row in zip(nimgs, rows_SK, strict=True):
            if not all(map(math.isfinite, row)):
                raise TrainingDiverged(f"{self._story(nimg, row)}; {ADVICE}")
            self.settled.append((nimg, row))

    def close(self, world: World) -> dict[str, float]:
        """The average of all steps since the last time, by key; then begin anew."""
        self.settle(world)
        rows, self.settled = self.settled, []
        count = max(1, len(rows))
        columns = zip(*(row for _, row in rows), strict=True)
        return {key: math.fsum(c) / count for key, c in zip(self.keys, columns, strict=False)}

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
        rows = [(int(nimg), [float(v) for v in row]) for nimg, row in values["settled"]]
        return cls(tuple(values["keys"]), rows)

    def _story(self, nimg: int, row: Sequence[float]) -> str:
        bad = next(
            key for key, value in zip(self.keys, row, strict=True) if not math.isfinite(value)
        )
        phase = bad.split("/")[0]
        facts = [f"{k.removeprefix(f'{phase}/')} {v:.6g}" for k, v in zip(self.keys, row, strict=True)
                 if k.startswith(f"{phase}/")]  # fmt: skip
        return (
            f"training diverged: {bad} is not finite in the step that ended at {nimg:,} images "
            f"(phase {phase}: {', '.join(facts)})"
        )
