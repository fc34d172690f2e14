"""The training state as files: safetensors for tensors, JSON for the rest. Nothing is pickled."""

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
"""The files of a checkpoint; ``_BEST_FILE`` only with a collapse monitor."""


@dataclass(frozen=True)
class StateSnapshot:
    """A copy of the state at one moment, on the CPU, independent of further training."""

    nimg: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    """File name -> its tensors."""
    metadata: bytes
    """The rest of the state, as JSON."""

    def files(self) -> dict[str, bytes]:
        """File name -> bytes. Equal states have equal bytes."""
        files = {name: safetensors.save(dict(tensors)) for name, tensors in self.tensors.items()}
        return {**files, _STATE_FILE: self.metadata}


@dataclass
class TrainState:
    """Everything that a training step changes."""

    nimg: int
    """Images seen."""
    model: GenerativeModel
    ema: GenerativeModel
    """The moving average of ``model``."""
    optimisers: Sequence[PhaseOptimiser]
    step_metrics: StepMetrics = field(default_factory=StepMetrics)
    """Losses of the steps that are not logged yet."""
    monitor_state: MonitorState = field(default_factory=MonitorState)
    """What the monitors have measured and done."""

    def snapshot(self) -> StateSnapshot:
        """Copy the whole state to the CPU."""
        moments = {
            name: t for optimiser in self.optimisers for name, t in optimiser.tensors().items()
        }
        tensors = {
            _MODEL_FILE: _copied(self.model.state_dict()),
            _EMA_FILE: _copied(self.ema.state_dict()),
            _OPTIMISER_FILE: _copied(moments),
        }
        if self.monitor_state.best:
            tensors[_BEST_FILE] = dict(self.monitor_state.best)  # never changed in place
        parts = {
            "step_metrics": self.step_metrics.as_json(),
            "monitors": self.monitor_state.as_json(),
        }
        metadata = canonical_json({"nimg": self.nimg, **parts})
        return StateSnapshot(self.nimg, tensors, metadata)

    def files(self) -> dict[str, bytes]:
        """File name -> bytes. Equal states have equal bytes."""
        return self.snapshot().files()

    def load(self, files: Mapping[str, bytes]) -> None:
        """Restore a state from its :meth:`files`.

        Raises:
            DataError: the files do not fit this model.
        """
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

    def record_best(self, coverage: float) -> None:
        """Keep a copy of the EMA weights if their samples' coverage is the best so far."""
        monitors = self.monitor_state
        if coverage > monitors.best_coverage:
            monitors.best_coverage, monitors.best_nimg = coverage, self.nimg
            monitors.best = _copied(self.ema.state_dict())

    def rollback(self, config: CollapseConfig) -> None:
        """Set both models to the best EMA weights and reset the optimisers. ``nimg`` and the data continue.

        Raises:
            TrainingCollapsed: no rollback is left, or there are no such weights.
        """
        record_rollback(self.monitor_state, config, self.nimg, self.model.hint("collapsed"))
        for model in (self.model, self.ema):
            model.load_state_dict(self.monitor_state.best)
            model.strengthen(config.penalty_factor)
        self.monitor_state.best = _copied(self.ema.state_dict())
        for optimiser in self.optimisers:
            for tensor in optimiser.tensors().values():
                tensor.zero_()


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory with the originals."""
    return {
        name: torch.empty(t.shape, dtype=t.dtype).copy_(t.detach()) for name, t in tensors.items()
    }


def stack_scalars(tensors: Sequence[Tensor]) -> Tensor:
    """Scalar tensors as one float64 vector."""
    return torch.stack([tensor.detach().double() for tensor in tensors])
