"""Conversions between pixels and network units, and between nats and bits per dimension.

A pixel is an integer in 0 .. 255. In network units it is ``x = 2 (pixel + 1/2) / 256 - 1``, the middle of
its bin in [-1, 1] (the encoding of Kingma et al. 2021, Variational Diffusion Models, sec. 5.1). Likelihoods
are sums over all dimensions, in nats. No other file does these conversions.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

_RANGE = re.compile(r"lebesgue\[(-?[0-9.]+),(-?[0-9.]+)\]")

LEVELS = 256
"""Number of values of an 8-bit pixel."""

HALF_BIN = 1.0 / LEVELS
"""Half the width of a pixel's bin, in network units: a bin is [x - HALF_BIN, x + HALF_BIN)."""


def to_network(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert pixels (uint8, 0 .. 255) to network units: the middles of their bins in [-1, 1].

    >>> to_network(torch.tensor([0, 128], dtype=torch.uint8)).tolist()
    [-0.99609375, 0.00390625]
    """
    return (pixels.to(dtype) + 0.5) * (2.0 / LEVELS) - 1.0


def to_pixels(x: Tensor) -> Tensor:
    """Convert network units to the pixels (uint8) whose bins contain them; clamp values outside [-1, 1].

    >>> to_pixels(torch.tensor([-2.0, 0.0, 0.999])).tolist()
    [0, 128, 255]
    """
    return ((x + 1.0) * (LEVELS / 2)).floor().clamp(0, LEVELS - 1).to(torch.uint8)


def dequantise(x: Tensor, u: Tensor, levels: int = LEVELS) -> Tensor:
    """Dequantise: move each pixel to the point of its bin that ``u`` selects.

    Args:
        x: images in network units.
        u: numbers in [0, 1), 0 for the lower end of the bin.
        levels: number of bins; with 2 they are [-1, 0) and [0, 1), as :func:`binarise` divides them.
    """
    level = ((x + 1.0) * (levels / 2)).floor()
    return (level + u) * (2.0 / levels) - 1.0


def binarise(x: Tensor) -> Tensor:
    """Round each value to pixel 0 or 255, in network units: the nearest binary image."""
    return torch.where(x < 0, HALF_BIN - 1.0, 1.0 - HALF_BIN).to(x.dtype)


def log_bin_volume(dims: int, levels: int = LEVELS) -> float:
    """Log volume of the bins of ``dims`` pixels in network units, in nats.

    For a density p in network units, log P(pixels) >= E_u[log p(dequantise(x, u))] + log_bin_volume(D).
    In bits per dimension it is the constant 7 that is added for data in [-1, 1] with 256 levels.

    >>> log_bin_volume(1) / math.log(2)
    -7.0
    """
    return dims * math.log(2.0 / levels)


COUNTS = "counts"
"""The counting measure: the likelihood is a probability of pixels, on {0..255}^D or {0,1}^D."""


def lebesgue(low: float, high: float) -> str:
    """Name of Lebesgue measure on [low, high]^D, for densities of images with that range of values.

    >>> lebesgue(-1, 1)
    'lebesgue[-1,1]'
    """
    return f"lebesgue[{low:g},{high:g}]"


NETWORK = lebesgue(-1, 1)
"""Lebesgue measure in network units: the likelihood is a density on [-1, 1]^D."""


def bits_per_dim_error(nats: float, dims: int) -> float:
    """Convert a standard error from nats to bits per dimension."""
    return nats / (dims * math.log(2.0))


def bits_per_dim(
    nats: Tensor | float, dims: int, measure: str = COUNTS, levels: int = LEVELS
) -> Tensor | float:
    """Convert a log-likelihood from nats to bits per dimension: -log2 P(pixels) / D.

    A density is converted to a probability as if it were constant within each pixel's bin. This adds
    log2(levels / range): 7 for [-1, 1] and 8 for [0, 1] with 256 levels.

    Args:
        nats: log-likelihood, summed over dimensions.
        dims: D, number of dimensions of an image.
        measure: ``COUNTS`` for a probability, or a name from :func:`lebesgue` for a density.
        levels: number of values of a pixel, whose bins divide the range evenly.

    Raises:
        ValueError: the measure is neither of these.

    >>> bits_per_dim(-784 * math.log(2.0), 784)
    1.0
    >>> bits_per_dim(0.0, 784, lebesgue(-1, 1))
    7.0
    """
    if measure == COUNTS:
        return -nats / (dims * math.log(2.0))
    match = _RANGE.fullmatch(measure)
    if match is None:
        raise ValueError(
            f"bits per dimension: got measure {measure!r}, expected {COUNTS!r} or 'lebesgue[LOW,HIGH]'"
        )
    low, high = map(float, match.groups())
    return -nats / (dims * math.log(2.0)) + math.log2(levels / (high - low))
