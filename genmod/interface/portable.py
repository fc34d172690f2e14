"""The part of a model that other programs can run: one network from declared inputs to images.

Letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from genmod.rng import Rng


@dataclass(frozen=True)
class NetInput:
    """An input of a network. Its first axis is the batch, of any size."""

    name: str
    draw: Callable[[Rng], Tensor]
    """Values as sampling makes them, one row for each of the generator's; float32 or int64."""
    description: str
    """Shape, range and how to make it, for people."""


@dataclass(frozen=True)
class PortableNet:
    """A network that maps its inputs, in their order, to images (B, C, H, W) in float32."""

    net: nn.Module
    inputs: tuple[NetInput, ...]
    output: str
    """What the images are and their range, for people."""
    usage: str
    """How to make samples with it, for people."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Further numbers that sampling needs, e.g. a trained prior."""


def label_input(classes: int, extra: str = "") -> NetInput:
    """The input of class numbers; ``extra`` names a further one."""
    text = f"(B,) int64, the class, 0 to {classes - 1}{extra}"
    return NetInput("label", lambda rng: rng.index_B % classes, text)
