"""What a model costs in operations, counted on the meta device where it can be: big nets cost nothing."""

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
from genmod.interface.registry import ModelConfig, family
from genmod.rng import Rng

META = torch.device("meta")

PEAK_FLOPS = {"v100": 125e12, "a100": 312e12, "h100": 989e12}
"""Dense 16-bit operations a second of tensor cores, by NVIDIA's data sheets (V100, A100, H100 SXM)."""

UTILISATION = 0.14
"""Share of the peak that training reaches: what EDM's published costs come to, 8 V100 and 2 days for CIFAR-10
and 32 A100 and 13 days for ImageNet-64."""


@dataclass(frozen=True)
class TrainingCost:
    """What one image costs. A multiplication and an addition are two operations."""

    parameters: int
    """Of all nets."""
    forward_flops: int
    """Of all phases' losses, each by how often it takes part."""
    step_flops: int
    """With the way back."""

    def images_per_s(self, gpu: str) -> float:
        """Training speed of one GPU at that utilisation: an estimate, good to a factor of 2 or so."""
        return PEAK_FLOPS[gpu] * UTILISATION / self.step_flops


def training_cost(config: ModelConfig) -> TrainingCost:
    """Count a training step of one image."""
    model = shapes_of(config)
    forward = backward = 0
    for phase in model.phases():
        mine = {id(parameter) for parameter in model.parameters_of(phase).values()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in mine)
        batch = _row(model)
        with _Counter() as counter:
            loss = model.loss(phase.name, batch, Rng(0, "work", batch.index_B), 0).total
        forward += counter.flops // phase.every
        with _Counter() as counter:
            loss.backward()
        backward += counter.flops // phase.every
    return TrainingCost(parameters_of(model), forward, forward + backward)


def shapes_of(config: ModelConfig) -> GenerativeModel:
    """The model without memory for its weights, or with, if its construction reads numbers."""
    family(config.family)  # loaded before, for loading computes
    try:
        with META:
            return config.build()
    except (
        NotImplementedError
    ):  # torch's word for a number that is asked of a tensor without memory
        return config.build()


def flops_of(call: Callable[[], object]) -> int:
    """Operations of matrix products and convolutions in a call."""
    with _Counter() as counter:
        call()
    return counter.flops


def parameters_of(model: nn.Module) -> int:
    """How many numbers training moves."""
    return sum(parameter.numel() for parameter in model.parameters())


def _row(model: GenerativeModel) -> Batch:
    device = next(model.parameters()).device
    index_B = torch.zeros(1, dtype=torch.int64, device=device)
    pixels_BCHW = torch.zeros(1, *model.spec.shape, dtype=torch.uint8, device=device)
    return Batch(pixels_BCHW, index_B if model.spec.classes else None, index_B)


class _Counter(TorchDispatchMode):
    """Sums the operations that torch knows the formula of. Also inside of derivatives of gradients."""

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
