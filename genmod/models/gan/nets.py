"""Generator and discriminator without normalisation layers, in the spirit of R3GAN (Huang et al. 2024).

Residual branches start small (Zhang et al. 2019, Fixup, sec. 3), so depth needs no normalisation and each
row's result depends on that row alone. Both nets work on images folded by pixel unshuffling, where
convolutions are cheap. After initialisation nothing is random.

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

_SLOPE = 0.2
"""Slope of the leaky ReLU below zero."""
_GAIN = math.sqrt(2.0 / (1.0 + _SLOPE**2))
"""Gain that keeps the second moment through a leaky ReLU (He et al. 2015, Delving deep, Eq. 15)."""
_KNEE = 0.95
"""Absolute output of G, in network units, beyond which its slope is smaller."""
_SLOPE_BEYOND = 0.1
"""Slope of the output of G beyond the knee."""
_BRANCH_GAIN = 0.1
"""Gain of the last layer of a residual branch: a block starts near the identity, and all weights train."""


def activate(x: Tensor) -> Tensor:
    """The leaky ReLU of both nets: piecewise linear, so second derivatives of the penalties are cheap."""
    return F.leaky_relu(x, _SLOPE)


def bend(u: Tensor) -> Tensor:
    """Output nonlinearity of G: slope 1 within the knee, 0.1 beyond it.

    Black and white, most pixels of a digit, are beyond the knee. There errors of the last layer count a
    tenth; a linear output shows them as grain. The gradient never vanishes, unlike that of a tanh, which
    stays black once it is black everywhere.
    """
    inside = u.clamp(-_KNEE, _KNEE)
    return inside + _SLOPE_BEYOND * (u - inside)


def _scaled(layer: nn.Conv2d | nn.Linear, gain: float) -> nn.Conv2d | nn.Linear:
    fan_in = layer.weight[0].numel()
    nn.init.normal_(layer.weight, std=gain / math.sqrt(fan_in))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class FixupBlock(nn.Module):
    """Residual block ``x + conv(act(conv(act(x))))`` without normalisation or conditioning, for GANs.

    Both convolutions are 3x3; the last starts with a small gain (Fixup).
    """

    def __init__(self, channels: int, blocks: int, layer: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        self.first = _scaled(layer(channels, channels, 3, padding=1), _GAIN)
        gain = _BRANCH_GAIN / math.sqrt(blocks)
        self.last = _scaled(layer(channels, channels, 3, padding=1), gain)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x_BCHW + self.last(activate(self.first(activate(x_BCHW))))


class Generator(nn.Module):
    """Maps (z, label) to an image, whose values may exceed [-1, 1] a little.

    Args:
        shape: (C, H, W); H and W are multiples of ``patch * 2 ** (len(widths) - 1)``.
        classes: number of labels, 0 for none.
        z_dim: length of the latent.
        widths: channels of each level, finest first; each next level has half the sides.
        blocks: residual blocks on each level.
        patch: side of the pixel square that one position of the finest level becomes.
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
        for level, level_width in enumerate(coarse_first):
            self.blocks.append(
                nn.Sequential(*(FixupBlock(level_width, total) for _ in range(blocks)))
            )
            if level + 1 < len(coarse_first):
                self.narrow.append(_scaled(nn.Conv2d(level_width, coarse_first[level + 1], 1), 1.0))
        self.to_patch = _scaled(nn.Conv2d(widths[0], channels * patch**2, 3, padding=1), 1.0)
        self.unfold = nn.PixelShuffle(patch)

    def forward(self, z_BZ: Tensor, labels_B: Tensor | None) -> Tensor:
        """Images (B, C, H, W).

        Args:
            z_BZ: standard normal.
            labels_B: int64; None if and only if there are no classes.
        """
        assert (labels_B is None) == (self.embed is None), "labels_B needs classes, and vice versa"
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


class ClampedGenerator(nn.Module):
    """A generator whose images are clamped to [-1, 1], as samples are."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z_BZ: Tensor, labels_B: Tensor | None = None) -> Tensor:
        """(B, Z) to (B, C, H, W)."""
        return self.generator(z_BZ, labels_B).clamp(-1.0, 1.0)


class Discriminator(nn.Module):
    """Maps an image and its label to one logit; higher means more likely real.

    The logit is the inner product of features with a class vector (Miyato and Koyama 2018, cGANs with
    projection discriminator, Eq. 3). It has no constant term, since a relativistic loss cancels it.

    Args:
        shape: (C, H, W); H and W are multiples of ``patch * 2 ** (len(widths) - 1)``.
        classes: number of labels, 0 for none.
        features: length of the feature vector.
        widths: channels of each level, finest first; each next level has half the sides.
        blocks: residual blocks on each level.
        patch: side of the pixel square that one position of the finest level covers.
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
        # Conv2d is fast to differentiate twice, which the gradient penalties need.
        self.stem = _scaled(Conv2d(channels * patch**2, widths[0], 3, padding=1), 1.0)
        self.blocks = nn.ModuleList()
        self.widen = nn.ModuleList()
        total = blocks * len(widths)
        for level, level_width in enumerate(widths):
            self.blocks.append(
                nn.Sequential(*(FixupBlock(level_width, total, Conv2d) for _ in range(blocks)))
            )
            if level + 1 < len(widths):
                self.widen.append(_scaled(nn.Conv2d(level_width, widths[level + 1], 1), 1.0))
        positions = (height // fold) * (width // fold)
        self.features = _scaled(Linear(widths[-1] * positions, features), _GAIN)
        self.direction = nn.Parameter(torch.randn(features) / math.sqrt(features))
        self.embed = nn.Embedding(classes, features) if classes else None
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, std=1.0 / math.sqrt(features))

    def forward(self, x_BCHW: Tensor, labels_B: Tensor | None) -> Tensor:
        """Logits (B,).

        Args:
            x_BCHW: images in [-1, 1].
            labels_B: int64; None if and only if there are no classes.
        """
        assert (labels_B is None) == (self.embed is None), "labels_B needs classes, and vice versa"
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
