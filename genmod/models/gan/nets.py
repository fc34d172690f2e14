"""Generator and discriminator without normalisation layers, in the spirit of R3GAN (Huang et al. 2024).

Residual blocks whose branches start small (Zhang et al. 2019, Fixup, sec. 3), so that depth needs no
normalisation and rows of a batch never see one another. Both nets work on images folded by pixel
unshuffling, where a convolution is cheap. Nothing here is random after initialisation.

Letters: B batch, C channels, H height, W width, Z latent dimensions, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmod.nets.blocks import stride_of
from genmod.nets.convolution import Conv2d
from genmod.nets.linear import Linear

SLOPE = 0.2
"""Of the leaky ReLU below zero."""
GAIN = math.sqrt(2.0 / (1.0 + SLOPE**2))
"""Keeps the second moment through a leaky ReLU (He et al. 2015, Delving deep into rectifiers, Eq. 15)."""
KNEE = 0.95
"""Where the output of G bends, in network units."""
SLOPE_BEYOND = 0.1
"""Of the output of G beyond the knee."""
BRANCH_GAIN = 0.1
"""Of the last layer of a residual branch: a block begins near the identity, yet every weight moves."""


def activate(x: Tensor) -> Tensor:
    """The leaky ReLU of both nets; piecewise linear, so the double backward of the penalties is cheap."""
    return F.leaky_relu(x, SLOPE)


def bend(u: Tensor) -> Tensor:
    """The output of G: linear within ``KNEE`` of 0, a tenth as steep beyond.

    Black and white, which fill most of a digit, lie beyond the knee. There the errors of the last layer
    count a tenth; with a linear output they are visible grain. And the gradient never vanishes: a tanh
    that has once turned black all over stays so.
    """
    inside = u.clamp(-KNEE, KNEE)
    return inside + SLOPE_BEYOND * (u - inside)


def _scaled(layer: nn.Conv2d | nn.Linear, gain: float) -> nn.Conv2d | nn.Linear:
    fan_in = layer.weight[0].numel()
    nn.init.normal_(layer.weight, std=gain / math.sqrt(fan_in))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class FixupBlock(nn.Module):
    """x + conv(act(conv(act(x)))), both 3x3 and of the same width."""

    def __init__(self, channels: int, blocks: int, layer: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        self.first = _scaled(layer(channels, channels, 3, padding=1), GAIN)
        gain = BRANCH_GAIN / math.sqrt(blocks)
        self.last = _scaled(layer(channels, channels, 3, padding=1), gain)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x_BCHW + self.last(activate(self.first(activate(x_BCHW))))


class Generator(nn.Module):
    """(z, label) to an image, whose values may pass [-1, 1] a little.

    Args:
        shape: (C, H, W); H and W are multiples of ``patch * 2 ** (len(widths) - 1)``.
        classes: number of labels, 0 for none.
        z_dim: length of the latent.
        widths: channels of each level, finest first; each next level has half the sides.
        blocks: residual blocks on each level.
        patch: side of the square of pixels that one position of the finest level makes.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        z_dim: int,
        widths: Sequence[int],
        blocks: int,
        patch: int,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        fold = stride_of(patch, widths)
        self.base_shape = (widths[-1], height // fold, width // fold)
        self.embed = nn.Embedding(classes, z_dim) if classes else None
        inputs = z_dim * (2 if classes else 1)
        self.base = _scaled(Linear(inputs, math.prod(self.base_shape)), 1.0)
        self.blocks = nn.ModuleList()
        self.narrow = nn.ModuleList()
        total = blocks * len(widths)
        coarse_first = list(reversed(widths))
        for level, here in enumerate(coarse_first):
            self.blocks.append(nn.Sequential(*(FixupBlock(here, total) for _ in range(blocks))))
            if level + 1 < len(coarse_first):
                self.narrow.append(_scaled(nn.Conv2d(here, coarse_first[level + 1], 1), 1.0))
        self.to_patch = _scaled(nn.Conv2d(widths[0], channels * patch**2, 3, padding=1), 1.0)
        self.unfold = nn.PixelShuffle(patch)

    def forward(self, z_BZ: Tensor, labels_B: Tensor | None) -> Tensor:
        """Images (B, C, H, W).

        Args:
            z_BZ: standard normal.
            labels_B: int64, None exactly if there are no classes.
        """
        assert (labels_B is None) == (self.embed is None), "labels come with classes, and only so"
        code = z_BZ
        if self.embed is not None:
            code = torch.cat((z_BZ, self.embed(labels_B)), dim=1)
        x = self.base(code).view(-1, *self.base_shape)
        for level, blocks in enumerate(self.blocks):
            if level > 0:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = blocks(x)
            if level < len(self.narrow):
                x = self.narrow[level](x)
        return bend(self.unfold(self.to_patch(activate(x))))


class Discriminator(nn.Module):
    """An image, given its label, to one logit: the higher, the more like real ones.

    The logit is a product of features with a vector of the class (Miyato and Koyama 2018, cGANs with
    projection discriminator, Eq. 3). It has no constant term, which a relativistic loss would cancel.

    Args:
        shape: (C, H, W); H and W are multiples of ``patch * 2 ** (len(widths) - 1)``.
        classes: number of labels, 0 for none.
        features: length of the vector that the image becomes.
        widths: channels of each level, finest first; each next level has half the sides.
        blocks: residual blocks on each level.
        patch: side of the square of pixels that one position of the finest level sees.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        features: int,
        widths: Sequence[int],
        blocks: int,
        patch: int,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        fold = stride_of(patch, widths)
        self.fold = nn.PixelUnshuffle(patch)
        # The penalties differentiate D twice.
        self.stem = _scaled(Conv2d(channels * patch**2, widths[0], 3, padding=1), 1.0)
        self.blocks = nn.ModuleList()
        self.widen = nn.ModuleList()
        total = blocks * len(widths)
        for level, here in enumerate(widths):
            self.blocks.append(
                nn.Sequential(*(FixupBlock(here, total, Conv2d) for _ in range(blocks)))
            )
            if level + 1 < len(widths):
                self.widen.append(_scaled(nn.Conv2d(here, widths[level + 1], 1), 1.0))
        positions = (height // fold) * (width // fold)
        self.features = _scaled(Linear(widths[-1] * positions, features), GAIN)
        self.direction = nn.Parameter(torch.randn(features) / math.sqrt(features))
        self.embed = nn.Embedding(classes, features) if classes else None
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, std=1.0 / math.sqrt(features))

    def forward(self, x_BCHW: Tensor, labels_B: Tensor | None) -> Tensor:
        """Logits (B,).

        Args:
            x_BCHW: images in [-1, 1].
            labels_B: int64, None exactly if there are no classes.
        """
        assert (labels_B is None) == (self.embed is None), "labels come with classes, and only so"
        x = self.stem(self.fold(x_BCHW))
        for level, blocks in enumerate(self.blocks):
            x = blocks(x)
            if level < len(self.widen):
                x = F.avg_pool2d(self.widen[level](x), 2)
        features_BF = activate(self.features(activate(x).flatten(1)))
        direction = self.direction
        if self.embed is not None:
            direction = direction + self.embed(labels_B)
        return (features_BF * direction).sum(dim=1)
