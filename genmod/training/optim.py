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
        """The state, named ``phase/parameter/quantity``; empty before the first step."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            for quantity, tensor in self.adamw.state.get(parameter, {}).items():
                found[f"{self.phase.name}/{name}/{quantity}"] = tensor
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that :meth:`tensors` gave.

        Raises:
            DataError: a tensor is missing or has another shape.
        """
        for name, parameter in self.parameters.items():
            state: dict[str, Tensor] = {}
            for quantity in ("step", *_MOMENTS):
                key = f"{self.phase.name}/{name}/{quantity}"
                like = parameter.detach()
                if quantity == "step":
                    device = like.device if self._fused else torch.device("cpu")
                    like = torch.zeros((), dtype=torch.float32, device=device)
                if key not in tensors or tensors[key].shape != like.shape:
                    raise DataError(f"the optimiser's state has no tensor {key} of {like.shape}")
                state[quantity] = torch.zeros_like(like).copy_(tensors[key])
            self.adamw.state[parameter] = state
