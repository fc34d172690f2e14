"""Encoder and decoder of dense layers: many more images a second than convolutions.

They suit small images only, since the first and the last layer are as wide as an image. A row's result
depends on that row alone.
Letters: B batch, C channels, H height, W width, E embedding, Z vector.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from genmod.nets.linear import Linear

Activation = Literal["silu", "relu", "tanh"]

_LAYERS: dict[Activation, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU, "tanh": nn.Tanh}


def _layers(lengths: Sequence[int], activation: Activation) -> nn.Sequential:
    """Linear maps from each length to the next, each followed by the activation.

    Layers before tanh have Glorot's initialisation (Glorot and Bengio 2010, sec. 4.2.1) and zero biases.
    """
    parts: list[nn.Module] = []
    for i, o in itertools.pairwise(lengths):
        linear = Linear(i, o)
        if activation == "tanh":
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        parts += [linear, _LAYERS[activation]()]
    return nn.Sequential(*parts)


class DenseEncoder(nn.Module):
    """Maps images to vectors by dense layers."""

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        out: int,
        *,
        hidden: Sequence[int],
        activation: Activation = "silu",
        embedding: int = 0,
    ) -> None:
        """Build the net.

        Args:
            channels: C of the images.
            size: (H, W) of the images.
            out: length of the output vector.
            hidden: lengths of the hidden layers.
            activation: after each hidden layer.
            embedding: length of the conditioning vector, 0 for none.
        """
        super().__init__()
        pixels = channels * size[0] * size[1]
        self.layers = _layers((pixels + embedding, *hidden), activation)
        self.head = Linear(hidden[-1], out)

    def forward(self, x_BCHW: Tensor, e_BE: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [-1, 1] and the conditioning vectors (B, E) to (B, out)."""
        x_BX = x_BCHW.flatten(1)
        return self.head(self.layers(x_BX if e_BE is None else torch.cat((x_BX, e_BE), dim=1)))


class DenseDecoder(nn.Module):
    """Maps vectors to images by dense layers."""

    def __init__(
        self,
        inputs: int,
        channels: int,
        size: tuple[int, int],
        *,
        hidden: Sequence[int],
        activation: Activation = "silu",
    ) -> None:
        """Build the net, the mirror of :class:`DenseEncoder`.

        Args:
            inputs: length of the input vector.
            channels: C of the output image.
            size: (H, W) of the image.
            hidden: the encoder's lengths; the decoder uses them in reverse.
            activation: after each hidden layer.
        """
        super().__init__()
        self.shape = (channels, *size)
        self.layers = _layers((inputs, *hidden[::-1]), activation)
        self.head = Linear(hidden[0], channels * size[0] * size[1])

    def forward(self, z_BZ: Tensor) -> Tensor:
        """(B, inputs) to (B, channels, H, W), unbounded."""
        return self.head(self.layers(z_BZ)).unflatten(1, self.shape)
