"""One AdamW optimiser per phase, with its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from genmod.errors import DataError
from genmod.interface.model import GenerativeModel, Phase
from genmod.training.plan import OptimConfig
from genmod.training.schedule import lr_at

_FUSED_DEVICES = ("cpu", "cuda")
"""Where torch computes a whole AdamW step in one kernel."""

_MOMENTS = ("exp_avg", "exp_avg_sq")

_NOT_NEGATIVE = ("/exp_avg_sq", "/step")
"""Ends of the names of tensors whose values are never negative."""


class PhaseOptimiser:
    """Optimises the parameters of one phase and no others."""

    def __init__(self, model: GenerativeModel, phase: Phase, config: OptimConfig) -> None:
        self.phase = phase
        self.config = config
        self.parameters: dict[str, nn.Parameter] = model.parameters_of(phase)
        self._values = values = list(self.parameters.values())
        own = {id(value) for value in values}
        self._others = [value for value in model.parameters() if id(value) not in own]
        self._fused = values[0].device.type in _FUSED_DEVICES
        self.adamw = torch.optim.AdamW(
            values,
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=self._fused,
        )
        # torch creates the state at the first step, but a checkpoint may come before a phase had its turn.
        for value in values:
            self.adamw.state[value] = self._fresh(value)

    def _fresh(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        device = parameter.device if self._fused else torch.device("cpu")
        step = torch.zeros((), dtype=torch.float32, device=device)
        return {"step": step} | {name: torch.zeros_like(parameter.detach()) for name in _MOMENTS}

    def lr_at(self, nimg: float, total_nimg: int) -> float:
        """Learning rate after ``nimg`` of ``total_nimg`` images."""
        return lr_at(self.config, nimg, total_nimg)

    def zero_grad(self) -> None:
        """Let only this phase's parameters require gradients, and drop the gradients they have."""
        for value in self._others:
            value.requires_grad = False
        for value in self._values:
            value.requires_grad, value.grad = True, None

    def step(self, lr: float) -> Tensor:
        """Clip the gradients and take one step. Returns the gradient norm before clipping, a scalar."""
        gradients = [value.grad for value in self._values if value.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        limit = self.config.clip_norm
        # On CPUs reading the norm needs no synchronization, so clipping by a factor of 1 can be skipped.
        if limit is not None and not (norm.device.type == "cpu" and float(norm) + 1e-6 <= limit):
            nn.utils.clip_grads_with_norm_(self._values, limit, norm)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """The optimiser's state by ``phase/parameter/quantity``; zeros before the first step."""
        return {
            f"{self.phase.name}/{name}/{quantity}": tensor
            for name, parameter in self.parameters.items()
            for quantity, tensor in self.adamw.state[parameter].items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore a state from its :meth:`tensors`, which :func:`check_moments` has checked."""
        for name, parameter in self.parameters.items():
            state = self._fresh(parameter)
            for quantity, tensor in state.items():
                tensor.copy_(tensors[f"{self.phase.name}/{name}/{quantity}"])
            self.adamw.state[parameter] = state


def check_moments(tensors: Mapping[str, Tensor], where: str, remedy: str) -> None:
    """Check the values of optimiser states that a file contains.

    Raises:
        DataError: a second moment or a number of steps is negative.
    """
    for name, tensor in tensors.items():
        if name.endswith(_NOT_NEGATIVE) and tensor.numel() and float(tensor.amin()) < 0:
            raise DataError(f"{where}: tensor {name} has negative values; {remedy}")
