"""Parts of convolutional nets: residual block, self-attention, noise-level embedding, change of resolution.

Normalisation is over groups of channels within one row, and there is no dropout: a row's result depends
on that row alone. The last layer of every residual branch starts at zero, so blocks start as the identity.
Letters: B batch, C and N channels, H height, W width, E embedding, F Fourier features, T positions.

References:
    Group normalization, Wu and He 2018, https://arxiv.org/abs/1803.08494
    FiLM: visual reasoning with a general conditioning layer, Perez et al. 2018,
    https://arxiv.org/abs/1709.07871
    Attention is all you need, Vaswani et al. 2017, https://arxiv.org/abs/1706.03762
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genmod.nets.linear import Linear

LayerT = TypeVar("LayerT", nn.Conv2d, nn.Linear)


def stride_of(unshuffle: int, widths: Sequence[int]) -> int:
    """Pixels per side that one position of the coarsest level covers.

    Args:
        unshuffle: side of the pixel squares that the stem folds into channels.
        widths: channels of each level; each level after the first halves height and width.
    """
    return unshuffle * 2 ** (len(widths) - 1)


def zeroed(layer: LayerT) -> LayerT:
    """Set a layer's weight and bias to zero, and return it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """Group normalisation with at most 32 groups of at least 4 channels, if that divides the channels."""
    groups = math.gcd(channels, min(32, max(1, channels // 4)))
    return nn.GroupNorm(groups, channels, eps=1e-5, affine=affine)


class NoiseEmbedding(nn.Module):
    """Embeds a noise level, one number, as a vector: Fourier features, then two layers."""

    frequencies_F: Tensor

    def __init__(self, features: int, embedding: int) -> None:
        """``features`` is the number of sines and cosines (even), ``embedding`` the length of the vector."""
        super().__init__()
        # Geometric: periods from 8 (three times the range of c_noise) down to 1/8.
        frequencies_F = 2.0 ** torch.linspace(-3, 3, features // 2)
        self.register_buffer("frequencies_F", frequencies_F, persistent=False)
        self.first = Linear(features, embedding)
        self.second = Linear(embedding, embedding)

    def forward(self, noise_B: Tensor) -> Tensor:
        """(B,) to (B, E)."""
        angle_BF = noise_B[:, None] * self.frequencies_F * (2 * math.pi)
        features_BF = torch.cat((angle_BF.cos(), angle_BF.sin()), dim=1)
        return self.second(F.silu(self.first(features_BF)))


class GroupNormBlock(nn.Module):
    """Residual block ``skip(x) + conv(silu(film(norm(conv(silu(norm(x)))))))``, for denoising U-Nets.

    FiLM scales and shifts each channel by an affine function of the embedding.
    """

    def __init__(self, channels: int, out: int, embedding: int) -> None:
        """From ``channels`` to ``out``, conditioned on a vector of length ``embedding``."""
        super().__init__()
        self.norm_in = group_norm(channels)
        self.conv_in = nn.Conv2d(channels, out, 3, padding=1)
        self.film = Linear(embedding, 2 * out)
        self.norm_out = group_norm(out, affine=False)  # FiLM is its affine map
        self.conv_out = zeroed(nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, h_BCHW: Tensor, e_BE: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, out, H, W)."""
        r_BNHW = self.conv_in(F.silu(self.norm_in(h_BCHW)))
        scale_BN, shift_BN = self.film(e_BE).chunk(2, dim=1)
        scale_BN11, shift_BN11 = scale_BN[:, :, None, None], shift_BN[:, :, None, None]
        r_BNHW = torch.addcmul(shift_BN11, self.norm_out(r_BNHW), 1 + scale_BN11)
        return self.skip(h_BCHW) + self.conv_out(F.silu(r_BNHW))


class SelfAttention(nn.Module):
    """``x + project(attention(norm(x)))`` between all positions of an image."""

    def __init__(self, channels: int, head: int) -> None:
        """``head`` is the number of channels of each head; it divides ``channels``."""
        super().__init__()
        assert channels % head == 0, (channels, head)
        self.heads = channels // head
        self.norm = group_norm(channels)
        self.qkv = Linear(channels, 3 * channels)
        self.project = zeroed(Linear(channels, channels))

    def forward(self, h_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        h_BTC = self.norm(h_BCHW).flatten(2).transpose(1, 2)
        qkv_BTC = self.qkv(h_BTC).unflatten(2, (3 * self.heads, -1))
        q, k, v = qkv_BTC.transpose(1, 2).chunk(3, dim=1)
        mixed_BTC = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        added_BCT = self.project(mixed_BTC).transpose(1, 2)
        return h_BCHW + added_BCT.unflatten(2, h_BCHW.shape[2:])


class Down(nn.Module):
    """Halves height and width: squares of 2 by 2 positions become channels, then a 1x1 convolution."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4 * channels, out, 1)

    def forward(self, h_BCHW: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, out, H/2, W/2)."""
        return self.mix(F.pixel_unshuffle(h_BCHW, 2))


class Up(nn.Module):
    """Doubles height and width, the mirror of :class:`Down`."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, 4 * out, 1)

    def forward(self, h_BCHW: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, out, 2H, 2W)."""
        return F.pixel_shuffle(self.mix(h_BCHW), 2)
