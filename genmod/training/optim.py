"""One AdamW per phase, its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from genmod.errors import DataError
from genmod.models.base import GenerativeModel, Phase
from genmod.training.plan import OptimConfig
from genmod.training.schedule import lr_at

FUSED_DEVICES = ("cpu", "cuda")
"""Where torch computes a whole AdamW step in one kernel."""

_MOMENTS = ("exp_avg", "exp_avg_sq")


class PhaseOptimiser:
    """Moves the parameters of one phase and no other."""

    def __init__(self, model: GenerativeModel, phase: Phase, config: OptimConfig) -> None:
        self.phase = phase
        self.config = config
        self.parameters: dict[str, nn.Parameter] = model.parameters_of(phase)
        values = list(self.parameters.values())
        self._fused = values[0].device.type in FUSED_DEVICES
        self.adamw = torch.optim.AdamW(
            values,
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=self._fused,
        )
        # torch makes it at the first step, but a phase may have had no turn when a checkpoint is written.
        for value in values:
            self.adamw.state[value] = self._fresh(value)

    def _fresh(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        device = parameter.device if self._fused else torch.device("cpu")
        step = torch.zeros((), dtype=torch.float32, device=device)
        return {"step": step} | {name: torch.zeros_like(parameter.detach()) for name in _MOMENTS}

    def lr_at(self, nimg: float, total_nimg: int) -> float:
        """Learning rate after ``nimg`` images."""
        return lr_at(self.config, nimg, total_nimg)

    def zero(self) -> None:
        """Forget the gradients."""
        self.adamw.zero_grad(set_to_none=True)

    def step(self, lr: float) -> Tensor:
        """Clip, then move. Returns the gradients' norm before clipping, a scalar."""
        values = list(self.parameters.values())
        gradients = [value.grad for value in values if value.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.config.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(values, self.config.clip_norm, norm)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """The state, named ``phase/parameter/quantity``; zeros before the first step."""
        return {
            f"{self.phase.name}/{name}/{quantity}": tensor
            for name, parameter in self.parameters.items()
            for quantity, tensor in self.adamw.state[parameter].items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that :meth:`tensors` gave.

        Raises:
            DataError: a tensor is missing or has another shape.
        """
        for name, parameter in self.parameters.items():
            state = self._fresh(parameter)
            for quantity, tensor in state.items():
                key = f"{self.phase.name}/{name}/{quantity}"
                if key not in tensors or tensors[key].shape != tensor.shape:
                    raise DataError(f"the optimiser's state has no tensor {key} of {tensor.shape}")
                tensor.copy_(tensors[key])
            self.adamw.state[parameter] = state
