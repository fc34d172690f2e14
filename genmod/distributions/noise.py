"""Gaussian noise around what a decoder says, with one sigma for all pixels: a likelihood of pixels.

Two views of it. As a probability of pixels, x is the pixel whose bin holds decoder + sigma eps, and what
falls beyond the range belongs to the outermost bins: log P is exact, nothing is dequantised. As a density,
x is a point of [-1, 1]^D. Letters: B batch, C channels, H height, W width, P parameters (one).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genmod import units
from genmod.distributions.decoders import PixelLikelihood
from genmod.rng import Rng


def log_interval(low: Tensor, high: Tensor) -> Tensor:
    """Log of Phi(high) - Phi(low) of a standard normal, low < high, without loss in the tails.

    Both ends are turned to the side where Phi is small, where its logarithm is precise.
    """
    flip = low + high > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    most = torch.special.log_ndtr(high)
    return most + torch.log(-torch.expm1(torch.special.log_ndtr(low) - most))


@dataclass(frozen=True)
class BinnedGaussian(PixelLikelihood):
    """The pixel whose bin holds N(raw, sigma^2). With two levels P(on) = Phi(raw / sigma)."""

    sigma: float
    levels: int = units.LEVELS

    @property
    def parameters(self) -> int:
        """One: the mean."""
        return 1

    def nats(self, raw_BPHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Log probability, computed in float64."""
        width = 2.0 / self.levels
        level = ((x_BCHW.double() + 1.0) / width).floor()
        low = (level * width - 1.0 - raw_BPHW.double()) / self.sigma
        high = low + width / self.sigma
        first, last = level == 0, level == self.levels - 1
        # What is not chosen must be finite too, or its gradient is none.
        inside = log_interval(low, high)
        edge = torch.special.log_ndtr(torch.where(first, high, -low))
        return torch.where(first | last, edge, inside).sum((1, 2, 3))

    def draw(self, raw_BPHW: Tensor, rng: Rng) -> Tensor:
        """The middle of the bin that a draw of N(raw, sigma^2) falls into."""
        eps_BCHW = rng.normal(*raw_BPHW.shape[1:], dtype=torch.float64)
        x_BCHW = raw_BPHW.double() + self.sigma * eps_BCHW
        if self.levels == 2:
            return units.binarise(x_BCHW).to(raw_BPHW.dtype)
        return units.to_network(units.to_pixels(x_BCHW), raw_BPHW.dtype)

    def mean(self, raw_BPHW: Tensor) -> Tensor:
        """The decoder's image within [-1, 1]; of binary pixels the likelier value."""
        if self.levels == 2:
            return units.binarise(raw_BPHW)
        return raw_BPHW.clamp(-1.0, 1.0)


@dataclass(frozen=True)
class PointGaussian(PixelLikelihood):
    """The density N(x; raw, sigma^2) at a point: nats by Lebesgue measure on network values."""

    sigma: float

    @property
    def parameters(self) -> int:
        """One: the mean."""
        return 1

    def nats(self, raw_BPHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Log density, computed in float64."""
        eps_BCHW = (x_BCHW.double() - raw_BPHW.double()) / self.sigma
        volume = math.log(self.sigma) + 0.5 * math.log(2 * math.pi)
        return -(0.5 * eps_BCHW.square() + volume).sum((1, 2, 3))

    def draw(self, raw_BPHW: Tensor, rng: Rng) -> Tensor:
        """A point, which may lie outside [-1, 1]."""
        return raw_BPHW + self.sigma * rng.normal(*raw_BPHW.shape[1:], dtype=raw_BPHW.dtype)

    def mean(self, raw_BPHW: Tensor) -> Tensor:
        """The decoder's image within [-1, 1]."""
        return raw_BPHW.clamp(-1.0, 1.0)


class LearnedSigma(nn.Module):
    """One standard deviation for all pixels, trained with the nets."""

    def __init__(self, begin: float) -> None:
        """``begin`` is its value before training."""
        super().__init__()
        self.log_sigma = nn.Parameter(torch.tensor(math.log(begin)))

    def forward(self) -> Tensor:
        """Log sigma, a scalar of at least float32."""
        return self.log_sigma if self.log_sigma.dtype == torch.float64 else self.log_sigma.float()


@dataclass(frozen=True)
class LearnedGaussian(PixelLikelihood):
    """N(raw, sigma^2) at points of the pixels' bins, with the bins' volume.

    The best sigma is the root of the mean squared error (optimal sigma-VAE, Rybkin et al. 2021,
    https://arxiv.org/abs/2006.13202); it is found by descent, so that no row's loss depends on its batch.
    """

    noise: LearnedSigma

    @property
    def parameters(self) -> int:
        """One: the mean."""
        return 1

    @property
    def is_density(self) -> bool:
        """Yes."""
        return True

    def nats(self, raw_BPHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Log density of points plus the log volume of their bins."""
        log_sigma = self.noise()
        eps_BCHW = (x_BCHW - raw_BPHW) * torch.exp(-log_sigma)
        volume = log_sigma + 0.5 * math.log(2 * math.pi) - units.log_bin_volume(1)
        return -(0.5 * eps_BCHW.square() + volume).sum((1, 2, 3))

    def draw(self, raw_BPHW: Tensor, rng: Rng) -> Tensor:
        """The middle of the bin that a draw of N(raw, sigma^2) falls into."""
        eps_BCHW = rng.normal(*raw_BPHW.shape[1:], dtype=torch.float64)
        x_BCHW = raw_BPHW.double() + self.noise().double().exp() * eps_BCHW
        return units.to_network(units.to_pixels(x_BCHW), raw_BPHW.dtype)

    def mean(self, raw_BPHW: Tensor) -> Tensor:
        """The decoder's image within [-1, 1]."""
        return raw_BPHW.clamp(-1.0, 1.0)
