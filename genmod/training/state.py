"""The training state as files: safetensors for tensors, JSON for the rest. Nothing is pickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from safetensors import torch as safetensors
from torch import Tensor

from genmod.budget import BUDGET
from genmod.config import Config, canonical_json
from genmod.documents import parse_document
from genmod.errors import DataError
from genmod.interface.model import GenerativeModel
from genmod.tensors import check_file_size, parse_tensors
from genmod.training.metric_point import Nimg
from genmod.training.monitors.collapse import (
    CollapseConfig,
    MonitorDocument,
    MonitorState,
    record_rollback,
)
from genmod.training.optim import PhaseOptimiser, check_moments
from genmod.training.step_metrics import StepMetrics, StepMetricsDocument

_MODEL_FILE, _EMA_FILE, _OPTIMISER_FILE, _BEST_FILE, _STATE_FILE = (
    "model.safetensors",
    "ema.safetensors",
    "optimiser.safetensors",
    "best.safetensors",
    "state.json",
)
"""The files of a checkpoint; ``_BEST_FILE`` only with a collapse monitor."""

_REQUIRED = {_MODEL_FILE, _EMA_FILE, _OPTIMISER_FILE, _STATE_FILE}

CHECKPOINT_FILES = _REQUIRED | {_BEST_FILE}
"""Names of all files that a state may have."""

REMEDY = "an older checkpoint is used"
"""End of the errors about a damaged checkpoint."""


class _StateDocument(Config):
    """The part of a checkpoint that is no tensor."""

    nimg: Nimg
    step_metrics: StepMetricsDocument
    monitors: MonitorDocument


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
        tensors = {
            _MODEL_FILE: _copied(self.model.state_dict()),
            _EMA_FILE: _copied(self.ema.state_dict()),
            _OPTIMISER_FILE: _copied(self._moments()),
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

    def check_sizes(self, sizes_bytes: Mapping[str, int], where: str = "checkpoint") -> None:
        """Check the declared sizes of the files of a state, before they are read.

        Args:
            sizes_bytes: file name -> bytes.
            where: name of their folder, for the error.

        Raises:
            DataError: a file is larger than that of this model can be.
        """
        weights = self.ema.state_dict()
        expected = {
            _MODEL_FILE: self.model.state_dict(),
            _EMA_FILE: weights,
            _BEST_FILE: weights,
            _OPTIMISER_FILE: self._moments(),
        }
        for file, size_bytes in sizes_bytes.items():
            if file in expected:
                check_file_size(size_bytes, expected[file], f"{where}/{file}", REMEDY)
            else:
                BUDGET.check(f"{where}/{file}", REMEDY, document_bytes=size_bytes)

    def load(
        self, files: Mapping[str, bytes], nimg: int | None = None, where: str = "checkpoint"
    ) -> None:
        """Restore a state from its :meth:`files`. All of them are checked before anything is changed.

        Args:
            files: file name -> bytes.
            nimg: images seen by the state, if the caller knows; another number is an error.
            where: name of their folder, for the error.

        Raises:
            DataError: a file is missing, or does not fit this model; the state is unchanged.
        """
        if missing := _REQUIRED - files.keys():
            raise DataError(f"{where} has no {min(missing)}; {REMEDY}")

        def tensors(file: str, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return parse_tensors(files[file], expected, f"{where}/{file}", REMEDY)

        document = self._document(files, f"{where}/{_STATE_FILE}")
        if nimg is not None and document.nimg != nimg:
            raise DataError(f"{where} is of {document.nimg:,} images, not {nimg:,}; {REMEDY}")
        weights = tensors(_MODEL_FILE, self.model.state_dict())
        average = tensors(_EMA_FILE, self.ema.state_dict())
        moments = tensors(_OPTIMISER_FILE, self._moments())
        check_moments(moments, f"{where}/{_OPTIMISER_FILE}", REMEDY)
        best = tensors(_BEST_FILE, self.ema.state_dict()) if _BEST_FILE in files else {}
        # Everything is whole: from here on nothing fails.
        self.model.load_state_dict(weights)
        self.ema.load_state_dict(average)
        for optimiser in self.optimisers:
            optimiser.load(moments)
        self.nimg = document.nimg
        self.step_metrics = StepMetrics.from_document(document.step_metrics)
        self.monitor_state = MonitorState.from_document(document.monitors, best)

    def _document(self, files: Mapping[str, bytes], where: str) -> _StateDocument:
        """The part of a checkpoint that is no tensor."""
        document = parse_document(
            _StateDocument, files[_STATE_FILE], "a training state", where, REMEDY
        )
        phases = {optimiser.phase.name for optimiser in self.optimisers}
        for key in document.step_metrics.keys:
            if key.partition("/")[0] not in phases:
                raise DataError(f"{where} has metrics of a phase that the model lacks; {REMEDY}")
        if (document.monitors.best_nimg >= 0) != (_BEST_FILE in files):
            raise DataError(
                f"{where} does not fit: {_BEST_FILE} is missing or unexpected; {REMEDY}"
            )
        return document

    def _moments(self) -> dict[str, Tensor]:
        """The states of all optimisers."""
        return {name: t for optimiser in self.optimisers for name, t in optimiser.tensors().items()}

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
