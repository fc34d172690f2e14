"""Pixel likelihoods p(x | decoder output), independent over pixels; log probabilities are in nats.

The decoder's raw output is unbounded, of shape (B, P C, H, W): P parameters for each of the C channels, laid
out as (P, C). Images are in network units (:mod:`genmod.units`), in [-1, 1].
Letters: B batch, C channels, H height, W width, P parameters, K components.

References:
    Improving variational inference with inverse autoregressive flow (discretised logistic),
    Kingma et al. 2016, https://arxiv.org/abs/1606.04934
    PixelCNN++ (mixture of them), Salimans et al. 2017, https://arxiv.org/abs/1701.05517
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from genmod import units
from genmod.rng import Rng

_FIRST, _LAST = -1.0 + units.HALF_BIN, 1.0 - units.HALF_BIN
"""Pixels 0 and 255 in network units."""

_LOG_SCALES = math.log(units.HALF_BIN / 8), 1.0
"""Range of a logistic's log scale. At the lower end a pixel in the middle of its bin has probability 0.9993,
so a smaller scale gains nothing. At the upper end nearly all mass is outside [-1, 1]."""


class PixelLikelihood(ABC):
    """A distribution p(x | decoder output), independent over pixels."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """P: number of decoder outputs for each pixel and channel."""

    @property
    def is_density(self) -> bool:
        """Whether :meth:`nats` expects dequantised images and includes the volume of their bins.

        Then its mean over uniform points is a lower bound on the log probability of the pixels.
        """
        return False

    @abstractmethod
    def nats(self, raw_BPHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Log probability of the images, (B,) in nats, summed over C, H and W."""

    @abstractmethod
    def draw(self, raw_BPHW: Tensor, rng: Rng) -> Tensor:
        """Draw images, (B, C, H, W), one per row of ``rng``; each value is the middle of a pixel's bin."""

    @abstractmethod
    def mean(self, raw_BPHW: Tensor) -> Tensor:
        """The expected image, (B, C, H, W) in [-1, 1], which is smoother than a draw.

        For binary pixels it is the most likely image instead, which is binary; see :meth:`expected`.
        """

    def expected(self, raw_BPHW: Tensor) -> Tensor:
        """The expectation of the image, (B, C, H, W) in [-1, 1], also for binary pixels."""
        return self.mean(raw_BPHW)


@dataclass(frozen=True)
class Bernoulli(PixelLikelihood):
    """Binary pixels: the decoder output is the log odds that a pixel is on."""

    @property
    def parameters(self) -> int:
        """One parameter per pixel and channel: the log odds."""
        return 1

    def nats(self, raw_BPHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Log probability, (B,) in nats; a pixel is on if its value is above 0."""
        return F.logsigmoid(raw_BPHW * x_BCHW.sign()).sum((1, 2, 3))

    def draw(self, raw_BPHW: Tensor, rng: Rng) -> Tensor:
        """Draw each pixel as on or off, (B, C, H, W)."""
        u_BCHW = rng.uniform(*raw_BPHW.shape[1:], dtype=torch.float64)
        return _black_or_white(u_BCHW < raw_BPHW.double().sigmoid(), raw_BPHW.dtype)

    def mean(self, raw_BPHW: Tensor) -> Tensor:
        """The more likely of the two values of each pixel, (B, C, H, W)."""
        return _black_or_white(raw_BPHW > 0, raw_BPHW.dtype)

    def expected(self, raw_BPHW: Tensor) -> Tensor:
        """The grey value in proportion to the probability that the pixel is on."""
        return _FIRST + (_LAST - _FIRST) * raw_BPHW.sigmoid()


def _black_or_white(on_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(on_BCHW, _LAST, _FIRST).to(dtype)


def bin_nats(x: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """Log mass of a logistic in each pixel's bin, in nats; the outermost bins extend to infinity.

    With a, b = (x +- h - location) / scale the mass is sigma(a) - sigma(b), which is
    sigma(a) sigma(-b) (1 - exp(b - a)): no difference of near-equal numbers, at any scale.
    """
    per_scale = torch.exp(-log_scale)
    upper = (x + units.HALF_BIN - location) * per_scale
    lower = (x - units.HALF_BIN - location) * per_scale
    below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
    inside = below + above + torch.log(-torch.expm1(-2 * units.HALF_BIN * per_scale))
    # Bins are 1/128 wide, so values within a quarter of a bin of an edge pixel's middle are that pixel.
    at_edge = torch.where(x < _FIRST + units.HALF_BIN / 2, below, above)
    return torch.where(x.abs() > _LAST - units.HALF_BIN / 2, at_edge, inside)


@dataclass(frozen=True)
class DiscretisedLogistic(PixelLikelihood):
    """8-bit pixels: a mixture of K logistics per pixel and channel, integrated over the pixel's bin.

    The decoder outputs location and log scale of each component and, for K > 1, its unnormalised log weight.
    A draw is a draw of the continuous mixture, rounded to the middle of its bin.
    """

    components: int = 1

    @property
    def parameters(self) -> int:
        """2 parameters per pixel and channel for K = 1, otherwise 3 K."""
        return 2 if self.components == 1 else 3 * self.components

    def _split(self, raw_BPHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Locations, log scales and log weights, each (B, K, C, H, W)."""
        raw_BPCHW = raw_BPHW.unflatten(1, (self.parameters, -1))
        count = self.components
        low, high = _LOG_SCALES
        log_scale = low + (high - low) * raw_BPCHW[:, count : 2 * count].sigmoid()
        # The location is in units of the scale, so the derivative of log P by the output is at most 1.
        location = log_scale.exp() * raw_BPCHW[:, :count]
        if count == 1:
            return location, log_scale, torch.zeros_like(location)
        spread = torch.linspace(-1, 1, count, dtype=location.dtype, device=location.device)
        location = location + spread[:, None, None, None]
        return location, log_scale, raw_BPCHW[:, 2 * count :].log_softmax(1)

    def nats(self, raw_BPHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Log probability of the pixels whose bins contain the values, (B,) in nats."""
        location, log_scale, log_weight = self._split(raw_BPHW)
        log_mass = bin_nats(x_BCHW[:, None], location, log_scale)
        if self.components > 1:
            log_mass = torch.logsumexp(log_mass + log_weight, 1, keepdim=True)
        return log_mass.sum((1, 2, 3, 4))

    def draw(self, raw_BPHW: Tensor, rng: Rng) -> Tensor:
        """Draw a component by its weight, then a value by the inverse CDF, (B, C, H, W)."""
        location, log_scale, log_weight = self._split(raw_BPHW.double())
        shape = location.shape[2:]
        if self.components > 1:
            u_BCHW = rng.fold("component").uniform(*shape, dtype=torch.float64)
            cumulative_BKCHW = log_weight.exp().cumsum(1)[:, :-1]
            component = (u_BCHW[:, None] >= cumulative_BKCHW).sum(1, keepdim=True)
            location, log_scale = location.gather(1, component), log_scale.gather(1, component)
        u_BCHW = rng.fold("value").uniform(*shape, dtype=torch.float64)
        x_BCHW = location[:, 0] + log_scale[:, 0].exp() * torch.logit(u_BCHW)
        return units.to_network(units.to_pixels(x_BCHW), raw_BPHW.dtype)

    def mean(self, raw_BPHW: Tensor) -> Tensor:
        """Mean of the mixture clamped to [first pixel, last pixel]; within half a bin of the pixels' mean.

        E[clamp(X, a, b)] = a + integral over [a, b] of P(X > t) dt, and the integral has the closed form
        scale (softplus((location - a) / scale) - softplus((location - b) / scale)).
        """
        location, log_scale, log_weight = self._split(raw_BPHW.double())
        scale = log_scale.exp()
        above = F.softplus((location - _FIRST) / scale) - F.softplus((location - _LAST) / scale)
        mean = scale * above
        if self.components > 1:
            mean = mean * log_weight.exp()
        return (mean.sum(1) + _FIRST).to(raw_BPHW.dtype)


@dataclass(frozen=True)
class Categorical(PixelLikelihood):
    """8-bit pixels: a softmax over the 256 values of each pixel and channel."""

    @property
    def parameters(self) -> int:
        """256 parameters per pixel and channel: the logits."""
        return units.LEVELS

    def _log_p(self, raw_BPHW: Tensor) -> Tensor:
        """Log probability of each value, (B, 256, C, H, W)."""
        return raw_BPHW.unflatten(1, (units.LEVELS, -1)).log_softmax(1)

    def nats(self, raw_BPHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Log probability of the pixels whose bins contain the values, (B,) in nats."""
        pixels_B1CHW = units.to_pixels(x_BCHW).long()[:, None]
        return self._log_p(raw_BPHW).gather(1, pixels_B1CHW).sum((1, 2, 3, 4))

    def draw(self, raw_BPHW: Tensor, rng: Rng) -> Tensor:
        """Draw each pixel by the inverse CDF, (B, C, H, W)."""
        cumulative_BKCHW = self._log_p(raw_BPHW.double()).exp().cumsum(1)[:, :-1]
        u_BCHW = rng.uniform(*cumulative_BKCHW.shape[2:], dtype=torch.float64)
        pixels_BCHW = (u_BCHW[:, None] >= cumulative_BKCHW).sum(1)
        return units.to_network(pixels_BCHW, raw_BPHW.dtype)

    def mean(self, raw_BPHW: Tensor) -> Tensor:
        """The mean of the 256 values under their probabilities, (B, C, H, W)."""
        values_K = units.to_network(torch.arange(units.LEVELS, device=raw_BPHW.device))
        p_BKCHW = self._log_p(raw_BPHW).exp()
        return torch.einsum("bkchw,k->bchw", p_BKCHW, values_K.to(p_BKCHW.dtype))
