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
        """Restore a state from its :meth:`tensors`.

        Raises:
            DataError: a tensor is missing or has another shape.
        """
        for name, parameter in self.parameters.items():
            state = self._fresh(parameter)
            for quantity, tensor in state.items():
                key = f"{self.phase.name}/{name}/{quantity}"
                if key not in tensors or tensors[key].shape != tensor.shape:
                    raise DataError(
                        f"the optimiser's state has no tensor {key} of shape {tuple(tensor.shape)}"
                    )
                tensor.copy_(tensors[key])
            self.adamw.state[parameter] = state
