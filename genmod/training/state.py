"""All that training moves, as files: safetensors for tensors, JSON for the rest. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from safetensors import torch as safetensors
from torch import Tensor

from genmod.config import canonical_json
from genmod.interface.model import GenerativeModel
from genmod.interface.model_store import load_weights, tensors_of
from genmod.training.monitors.collapse import CollapseConfig, MonitorState, record_rollback
from genmod.training.optim import PhaseOptimiser
from genmod.training.step_metrics import StepMetrics

_MODEL_FILE, _EMA_FILE, _OPTIMISER_FILE, _BEST_FILE, _STATE_FILE = (
    "model.safetensors",
    "ema.safetensors",
    "optimiser.safetensors",
    "best.safetensors",
    "state.json",
)
"""The files of a checkpoint; ``_BEST_FILE`` only where samples are watched."""


@dataclass(frozen=True)
class Snapshot:
    """A state at one moment, on the CPU; training goes on without changing it."""

    nimg: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    """Name of a file -> what is in it."""
    metadata: bytes
    """The rest, as JSON."""

    def files(self) -> dict[str, bytes]:
        """Name -> bytes. The same state gives the same bytes."""
        named = {name: safetensors.save(dict(held)) for name, held in self.tensors.items()}
        return {**named, _STATE_FILE: self.metadata}


@dataclass
class TrainState:
    """What one training step turns into the next."""

    nimg: int
    """Images seen."""
    model: GenerativeModel
    ema: GenerativeModel
    """The moving average of ``model``."""
    optimisers: Sequence[PhaseOptimiser]
    step_metrics: StepMetrics = field(default_factory=StepMetrics)
    """Losses of the steps that are not logged yet."""
    monitor_state: MonitorState = field(default_factory=MonitorState)
    """What looks at samples have found."""

    def snapshot(self) -> Snapshot:
        """A copy of all of it."""
        moments = {
            name: t for optimiser in self.optimisers for name, t in optimiser.tensors().items()
        }
        tensors = {
            _MODEL_FILE: _copied(self.model.state_dict()),
            _EMA_FILE: _copied(self.ema.state_dict()),
            _OPTIMISER_FILE: _copied(moments),
        }
        if self.monitor_state.best:
            tensors[_BEST_FILE] = dict(
                self.monitor_state.best
            )  # replaced as a whole, never changed
        parts = {
            "step_metrics": self.step_metrics.as_json(),
            "monitors": self.monitor_state.as_json(),
        }
        metadata = canonical_json({"nimg": self.nimg, **parts})
        return Snapshot(self.nimg, tensors, metadata)

    def files(self) -> dict[str, bytes]:
        """Name -> bytes. The same state gives the same bytes."""
        return self.snapshot().files()

    def load(self, files: Mapping[str, bytes]) -> None:
        """Take over what :meth:`files` gave. DataError if it does not fit this model."""
        load_weights(self.model, files[_MODEL_FILE], _MODEL_FILE)
        load_weights(self.ema, files[_EMA_FILE], _EMA_FILE)
        moments = tensors_of(files[_OPTIMISER_FILE], _OPTIMISER_FILE)
        for optimiser in self.optimisers:
            optimiser.load(moments)
        metadata = json.loads(files[_STATE_FILE])
        self.nimg = int(metadata["nimg"])
        self.step_metrics = StepMetrics.from_json(metadata["step_metrics"])
        best = tensors_of(files[_BEST_FILE], _BEST_FILE) if _BEST_FILE in files else {}
        self.monitor_state = MonitorState.from_json(metadata["monitors"], best)

    def record_best(self, found: Mapping[str, float]) -> None:
        """Keep these averaged weights if their samples cover more than ever."""
        if found["coverage"] > self.monitor_state.best_coverage:
            self.monitor_state.best_coverage, self.monitor_state.best_nimg = (
                found["coverage"],
                self.nimg,
            )
            self.monitor_state.best = _copied(self.ema.state_dict())

    def rollback(self, config: CollapseConfig) -> None:
        """Both models get the best averaged weights, optimisers begin anew. The clock and the data go on.

        Raises:
            TrainingCollapsed: there is no way back, or no further one.
        """
        record_rollback(self.monitor_state, config, self.nimg)
        for model in (self.model, self.ema):
            model.load_state_dict(self.monitor_state.best)
            model.strengthen(config.penalty_factor)
        self.monitor_state.best = _copied(self.ema.state_dict())
        for optimiser in self.optimisers:
            for tensor in optimiser.tensors().values():
                tensor.zero_()


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU that share no memory with these."""
    return {
        name: torch.empty(t.shape, dtype=t.dtype).copy_(t.detach()) for name, t in tensors.items()
    }


def stack_scalars(tensors: Sequence[Tensor]) -> Tensor:
    """Scalars as one float64 vector."""
    return torch.stack([tensor.detach().double() for tensor in tensors])
