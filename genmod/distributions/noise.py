"""Gaussian pixel likelihoods: N(decoder output, sigma^2) with one sigma for all pixels.

:class:`BinnedGaussian` is a probability of pixels: the Gaussian is integrated over each pixel's bin, and the
outermost bins extend to infinity. :class:`PointGaussian` and :class:`LearnedGaussian` are densities.
Letters: B batch, C channels, H height, W width, P parameters (one).
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
    """log(Phi(high) - Phi(low)) of a standard normal, for low < high, accurate in both tails.

    Intervals in the upper half are mirrored to the lower one, where log Phi is accurate.
    """
    flip = low + high > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    log_high = torch.special.log_ndtr(high)
    return log_high + torch.log(-torch.expm1(torch.special.log_ndtr(low) - log_high))


@dataclass(frozen=True)
class BinnedGaussian(PixelLikelihood):
    """Probability of the pixel whose bin contains a draw of N(raw, sigma^2).

    With two levels, P(on) = Phi(raw / sigma).
    """

    sigma: float
    levels: int = units.LEVELS

    @property
    def parameters(self) -> int:
        """One parameter per pixel and channel: the mean."""
        return 1

    def nats(self, raw_BPHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Log probability of the pixels, (B,) float64 in nats."""
        width = 2.0 / self.levels
        level = ((x_BCHW.double() + 1.0) / width).floor()
        low = (level * width - 1.0 - raw_BPHW.double()) / self.sigma
        high = low + width / self.sigma
        first, last = level == 0, level == self.levels - 1
        # Values that are not selected must be finite too, or their gradient is NaN.
        inside = log_interval(low, high)
        edge = torch.special.log_ndtr(torch.where(first, high, -low))
        return torch.where(first | last, edge, inside).sum((1, 2, 3))

    def draw(self, raw_BPHW: Tensor, rng: Rng) -> Tensor:
        """Draw pixels, (B, C, H, W): the middles of the bins that draws of N(raw, sigma^2) fall into."""
        eps_BCHW = rng.normal(*raw_BPHW.shape[1:], dtype=torch.float64)
        x_BCHW = raw_BPHW.double() + self.sigma * eps_BCHW
        if self.levels == 2:
            return units.binarise(x_BCHW).to(raw_BPHW.dtype)
        return units.to_network(units.to_pixels(x_BCHW), raw_BPHW.dtype)

    def mean(self, raw_BPHW: Tensor) -> Tensor:
        """The decoder's image clamped to [-1, 1]; for binary pixels, the more likely value."""
        if self.levels == 2:
            return units.binarise(raw_BPHW)
        return raw_BPHW.clamp(-1.0, 1.0)


@dataclass(frozen=True)
class PointGaussian(PixelLikelihood):
    """The density N(x; raw, sigma^2) of images in network units."""

    sigma: float

    @property
    def parameters(self) -> int:
        """One parameter per pixel and channel: the mean."""
        return 1

    def nats(self, raw_BPHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Log density of the images, (B,) float64 in nats."""
        eps_BCHW = (x_BCHW.double() - raw_BPHW.double()) / self.sigma
        volume = math.log(self.sigma) + 0.5 * math.log(2 * math.pi)
        return -(0.5 * eps_BCHW.square() + volume).sum((1, 2, 3))

    def draw(self, raw_BPHW: Tensor, rng: Rng) -> Tensor:
        """Draw images, (B, C, H, W); values may be outside [-1, 1]."""
        return raw_BPHW + self.sigma * rng.normal(*raw_BPHW.shape[1:], dtype=raw_BPHW.dtype)

    def mean(self, raw_BPHW: Tensor) -> Tensor:
        """The decoder's image clamped to [-1, 1]."""
        return raw_BPHW.clamp(-1.0, 1.0)


class LearnedSigma(nn.Module):
    """A trained standard deviation, one for all pixels."""

    def __init__(self, initial: float) -> None:
        """``initial`` is sigma before training."""
        super().__init__()
        self.log_sigma = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self) -> Tensor:
        """Log sigma, a scalar in at least float32."""
        return self.log_sigma if self.log_sigma.dtype == torch.float64 else self.log_sigma.float()


@dataclass(frozen=True)
class LearnedGaussian(PixelLikelihood):
    """The density N(raw, sigma^2) of dequantised pixels times the volume of their bins, sigma trained.

    The best sigma is the root of the mean squared error (optimal sigma-VAE, Rybkin et al. 2021,
    https://arxiv.org/abs/2006.13202). It is trained by gradient descent instead of computed from the batch,
    so that no row's loss depends on other rows.
    """

    noise: LearnedSigma

    @property
    def parameters(self) -> int:
        """One parameter per pixel and channel: the mean."""
        return 1

    @property
    def is_density(self) -> bool:
        """True: it is evaluated at dequantised points."""
        return True

    def nats(self, raw_BPHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Log density of the points plus the log volume of their bins, (B,) in nats."""
        log_sigma = self.noise()
        eps_BCHW = (x_BCHW - raw_BPHW) * torch.exp(-log_sigma)
        volume = log_sigma + 0.5 * math.log(2 * math.pi) - units.log_bin_volume(1)
        return -(0.5 * eps_BCHW.square() + volume).sum((1, 2, 3))

    def draw(self, raw_BPHW: Tensor, rng: Rng) -> Tensor:
        """Draw pixels, (B, C, H, W): the middles of the bins that draws of N(raw, sigma^2) fall into."""
        eps_BCHW = rng.normal(*raw_BPHW.shape[1:], dtype=torch.float64)
        x_BCHW = raw_BPHW.double() + self.noise().double().exp() * eps_BCHW
        return units.to_network(units.to_pixels(x_BCHW), raw_BPHW.dtype)

    def mean(self, raw_BPHW: Tensor) -> Tensor:
        """The decoder's image clamped to [-1, 1]."""
        return raw_BPHW.clamp(-1.0, 1.0)
