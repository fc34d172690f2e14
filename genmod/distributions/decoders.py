"""Likelihoods of pixels given what a decoder says of them: sums over all dimensions, in nats.

A likelihood takes the decoder's raw output, unbounded numbers of shape (B, P C, H, W) with P parameters
for each of the C channels, laid out as (P, C). Images are in network units (:mod:`genmod.units`), in
[-1, 1]. Letters: B batch, C channels, H height, W width, P parameters, K components.

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
"""Bounds of a logistic's log scale. At the lower one a pixel in the middle of its bin has probability
0.9993, so that a smaller scale gains nothing; at the upper one nearly all mass lies beyond [-1, 1]."""


class PixelLikelihood(ABC):
    """p(x | what the decoder says), independent over pixels."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """P: numbers that a decoder must give for each pixel and channel."""

    @property
    def is_density(self) -> bool:
        """Whether :meth:`nats` is asked of points in the pixels' bins, with the bins' volume added to it.

        Its mean over uniform points is a lower bound on the pixels' log probability.
        """
        return False

    @abstractmethod
    def nats(self, raw_BPHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Log probability of the images, (B,), summed over C, H and W."""

    @abstractmethod
    def draw(self, raw_BPHW: Tensor, rng: Rng) -> Tensor:
        """One draw for each row, (B, C, H, W), every value the middle of a pixel's bin."""

    @abstractmethod
    def mean(self, raw_BPHW: Tensor) -> Tensor:
        """The expected image, (B, C, H, W) in [-1, 1]: not a draw, and smoother than any.

        Of binary pixels it is the likeliest image, so that it stays a binary one; see :meth:`expected`.
        """

    def expected(self, raw_BPHW: Tensor) -> Tensor:
        """The expectation of the image, (B, C, H, W) in [-1, 1], grey where pixels are binary."""
        return self.mean(raw_BPHW)


@dataclass(frozen=True)
class Bernoulli(PixelLikelihood):
    """Binary pixels: the raw number is the log odds of a pixel being on."""

    @property
    def parameters(self) -> int:
        """One."""
        return 1

    def nats(self, raw_BPHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Log probability; a pixel is on if it is above 0."""
        return F.logsigmoid(raw_BPHW * x_BCHW.sign()).sum((1, 2, 3))

    def draw(self, raw_BPHW: Tensor, rng: Rng) -> Tensor:
        """Each pixel on or off."""
        u_BCHW = rng.uniform(*raw_BPHW.shape[1:], dtype=torch.float64)
        return _black_or_white(u_BCHW < raw_BPHW.double().sigmoid(), raw_BPHW.dtype)

    def mean(self, raw_BPHW: Tensor) -> Tensor:
        """The likelier of the two values, so that the image stays a binary one."""
        return _black_or_white(raw_BPHW > 0, raw_BPHW.dtype)

    def expected(self, raw_BPHW: Tensor) -> Tensor:
        """As grey as the pixel is likely to be on."""
        return _FIRST + (_LAST - _FIRST) * raw_BPHW.sigmoid()


def _black_or_white(on_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(on_BCHW, _LAST, _FIRST).to(dtype)


def bin_nats(x: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """Log mass of a logistic in each pixel's bin; the first and the last bin reach to infinity.

    With a, b = (x +- h - location) / scale the mass is sigma(a) - sigma(b), which is
    sigma(a) sigma(-b) (1 - exp(b - a)): no difference of near-equal numbers, at any scale.
    """
    per_scale = torch.exp(-log_scale)
    upper = (x + units.HALF_BIN - location) * per_scale
    lower = (x - units.HALF_BIN - location) * per_scale
    below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
    inside = below + above + torch.log(-torch.expm1(-2 * units.HALF_BIN * per_scale))
    # Bins are 1/128 wide: a quarter bin around an edge's middle is that edge and no other.
    at_edge = torch.where(x < _FIRST + units.HALF_BIN / 2, below, above)
    return torch.where(x.abs() > _LAST - units.HALF_BIN / 2, at_edge, inside)


@dataclass(frozen=True)
class DiscretisedLogistic(PixelLikelihood):
    """8-bit pixels: for each pixel and channel a mixture of K logistics, integrated over the bins.

    Of each component the decoder gives location and log scale, and for K > 1 its log weight up to a
    constant. A draw is a draw of the continuous mixture, moved to the middle of its bin.
    """

    components: int = 1

    @property
    def parameters(self) -> int:
        """2 for one component, else 3 K."""
        return 2 if self.components == 1 else 3 * self.components

    def _split(self, raw_BPHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Locations, log scales and log weights, each (B, K, C, H, W)."""
        raw_BPCHW = raw_BPHW.unflatten(1, (self.parameters, -1))
        count = self.components
        low, high = _LOG_SCALES
        log_scale = low + (high - low) * raw_BPCHW[:, count : 2 * count].sigmoid()
        # In units of the scale, so that the slope of log P to the raw number is never above 1.
        location = log_scale.exp() * raw_BPCHW[:, :count]
        if count == 1:
            return location, log_scale, torch.zeros_like(location)
        spread = torch.linspace(-1, 1, count, dtype=location.dtype, device=location.device)
        location = location + spread[:, None, None, None]
        return location, log_scale, raw_BPCHW[:, 2 * count :].log_softmax(1)

    def nats(self, raw_BPHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Log probability of the pixels in whose bins the values lie."""
        location, log_scale, log_weight = self._split(raw_BPHW)
        each = bin_nats(x_BCHW[:, None], location, log_scale)
        if self.components > 1:
            each = torch.logsumexp(each + log_weight, 1, keepdim=True)
        return each.sum((1, 2, 3, 4))

    def draw(self, raw_BPHW: Tensor, rng: Rng) -> Tensor:
        """A component by its weight, then a value by the inverse of its distribution function."""
        location, log_scale, log_weight = self._split(raw_BPHW.double())
        shape = location.shape[2:]
        if self.components > 1:
            u_BCHW = rng.fold("component").uniform(*shape, dtype=torch.float64)
            upto_BKCHW = log_weight.exp().cumsum(1)[:, :-1]
            which = (u_BCHW[:, None] >= upto_BKCHW).sum(1, keepdim=True)
            location, log_scale = location.gather(1, which), log_scale.gather(1, which)
        u_BCHW = rng.fold("value").uniform(*shape, dtype=torch.float64)
        x_BCHW = location[:, 0] + log_scale[:, 0].exp() * torch.logit(u_BCHW)
        return units.to_network(units.to_pixels(x_BCHW), raw_BPHW.dtype)

    def mean(self, raw_BPHW: Tensor) -> Tensor:
        """Mean of the mixture held between the first and the last pixel, within half a bin of the pixels'.

        E[clamp(X, a, b)] = a + the integral over [a, b] of P(X > t), which is in closed form
        scale (softplus((location - a) / scale) - softplus((location - b) / scale)).
        """
        location, log_scale, log_weight = self._split(raw_BPHW.double())
        scale = log_scale.exp()
        above = F.softplus((location - _FIRST) / scale) - F.softplus((location - _LAST) / scale)
        return ((scale * above * log_weight.exp()).sum(1) + _FIRST).to(raw_BPHW.dtype)


@dataclass(frozen=True)
class Categorical(PixelLikelihood):
    """8-bit pixels: for each pixel and channel a probability of each of the 256 values, free of any shape."""

    @property
    def parameters(self) -> int:
        """256 logits."""
        return units.LEVELS

    def _log_p(self, raw_BPHW: Tensor) -> Tensor:
        """(B, 256, C, H, W)."""
        return raw_BPHW.unflatten(1, (units.LEVELS, -1)).log_softmax(1)

    def nats(self, raw_BPHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Log probability of the pixels in whose bins the values lie."""
        pixels_B1CHW = units.to_pixels(x_BCHW).long()[:, None]
        return self._log_p(raw_BPHW).gather(1, pixels_B1CHW).sum((1, 2, 3, 4))

    def draw(self, raw_BPHW: Tensor, rng: Rng) -> Tensor:
        """Each pixel by the inverse of its distribution function."""
        upto_BKCHW = self._log_p(raw_BPHW.double()).exp().cumsum(1)[:, :-1]
        u_BCHW = rng.uniform(*upto_BKCHW.shape[2:], dtype=torch.float64)
        pixels_BCHW = (u_BCHW[:, None] >= upto_BKCHW).sum(1)
        return units.to_network(pixels_BCHW, raw_BPHW.dtype)

    def mean(self, raw_BPHW: Tensor) -> Tensor:
        """The mean of the values."""
        values_K = units.to_network(torch.arange(units.LEVELS, device=raw_BPHW.device))
        p_BKCHW = self._log_p(raw_BPHW).exp()
        return torch.einsum("bkchw,k->bchw", p_BKCHW, values_K.to(p_BKCHW.dtype))
