"""Operations of a model, counted on the meta device where possible, so that large nets need no memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import flop_registry

from genmod.compat import ONEDNN_LINEAR, TorchDispatchMode
from genmod.interface.batch import Batch
from genmod.interface.model import GenerativeModel
from genmod.interface.registry import ModelConfig
from genmod.rng import Rng

PEAK_FLOPS = {"v100": 125e12, "a100": 312e12, "h100": 989e12}
"""Dense 16-bit operations per second of tensor cores, by NVIDIA's data sheets (V100, A100, H100 SXM)."""

UTILISATION = 0.14
"""Share of the peak that training reaches, from the published costs of EDM: 2 days on 8 V100 for CIFAR-10,
13 days on 32 A100 for ImageNet-64."""


@dataclass(frozen=True)
class TrainingCost:
    """Operations per image. A multiplication and an addition count as two."""

    parameters: int
    """Number of parameters of all nets."""
    forward_flops: int
    """Forward passes of all phases, each divided by its :attr:`Phase.every`."""
    step_flops: int
    """Forward and backward passes."""

    def images_per_s(self, gpu: str) -> float:
        """Estimated training speed of one GPU at :data:`UTILISATION`, within a factor of about 2."""
        return PEAK_FLOPS[gpu] * UTILISATION / self.step_flops


def training_cost(config: ModelConfig) -> TrainingCost:
    """Operations of a training step on one image."""
    model = config.shapes()
    forward = backward = 0
    for phase in model.phases():
        trained = {id(parameter) for parameter in model.parameters_of(phase).values()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        batch = _row(model)
        with _Counter() as counter:
            loss = model.loss(phase.name, batch, Rng(0, "work", batch.index_B), 0).total
        forward += counter.flops // phase.every
        with _Counter() as counter:
            loss.backward()
        backward += counter.flops // phase.every
    return TrainingCost(parameters_of(model), forward, forward + backward)


def flops_of(call: Callable[[], object]) -> int:
    """Operations of the matrix products and convolutions in a call."""
    with _Counter() as counter:
        call()
    return counter.flops


def training_bytes(parameters: int) -> int:
    """Memory of a training worker for a model: weights, gradients, two moments, average, in float32."""
    return 20 * parameters


def parameters_of(model: nn.Module) -> int:
    """Number of parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def _row(model: GenerativeModel) -> Batch:
    device = next(model.parameters()).device
    index_B = torch.zeros(1, dtype=torch.int64, device=device)
    pixels_BCHW = torch.zeros(1, *model.spec.shape, dtype=torch.uint8, device=device)
    return Batch(pixels_BCHW, index_B if model.spec.classes else None, index_B)


class _Counter(TorchDispatchMode):
    """Sums the operations for which torch has a formula.

    torch's own FlopCounterMode gives the same sums, but raises an error in derivatives of gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.name() == ONEDNN_LINEAR:
            self.flops += 2 * args[0].numel() * len(args[1])
        elif (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += int(formula(*args, **kwargs, out_val=out))
        return out
