"""The only place where pixels, network inputs, nats and bits are turned into one another.

A pixel is an integer in {0..255}. The network sees ``x = 2 (pixel + 1/2) / 256 - 1``, the middle of
the pixel's bin in [-1, 1] (the encoding of Kingma et al. 2021, Variational Diffusion Models, sec. 5.1).
A likelihood is a sum over all dimensions, in nats; bits per dimension are derived here and nowhere else.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

_RANGE = re.compile(r"lebesgue\[(-?[0-9.]+),(-?[0-9.]+)\]")

LEVELS = 256
"""Values that a pixel can take."""

HALF_BIN = 1.0 / LEVELS
"""Half the width of a pixel's bin, in network units: a bin is [x - HALF_BIN, x + HALF_BIN)."""


def to_network(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels (uint8, 0..255) to the middles of their bins in [-1, 1]."""
    return (pixels.to(dtype) + 0.5) * (2.0 / LEVELS) - 1.0


def to_pixels(x: Tensor) -> Tensor:
    """Network values to the pixel (uint8) whose bin holds them; outside [-1, 1] the edge's pixel."""
    return ((x + 1.0) * (LEVELS / 2)).floor().clamp(0, LEVELS - 1).to(torch.uint8)


def dequantise(x: Tensor, u: Tensor, levels: int = LEVELS) -> Tensor:
    """Spread each pixel over its bin. ``u`` is uniform in [0, 1); ``x`` as :func:`to_network` gives it.

    With ``levels`` = 2 the bins are [-1, 0) and [0, 1), whose sides :func:`binarise` tells apart.
    """
    level = ((x + 1.0) * (levels / 2)).floor()
    return (level + u) * (2.0 / levels) - 1.0


def binarise(x: Tensor) -> Tensor:
    """The nearest image of two levels: each value to pixel 0 or 255, as :func:`to_network` gives them."""
    return torch.where(x < 0, HALF_BIN - 1.0, 1.0 - HALF_BIN).to(x.dtype)


def log_bin_volume(dims: int, levels: int = LEVELS) -> float:
    """Log volume of one pixel bin in network units, in nats.

    For a density p on network values, log P(pixels) >= E_u[log p(dequantise(x, u))] + log_bin_volume(D).
    In bits per dimension that is the constant 7 which is added for data in [-1, 1] with 256 levels.
    """
    return dims * math.log(2.0 / levels)


COUNTS = "counts"
"""Measure of a probability of the pixels themselves, on {0..255}^D or {0,1}^D."""


def lebesgue(low: float, high: float) -> str:
    """The measure of a density of values whose range is [low, high]."""
    return f"lebesgue[{low:g},{high:g}]"


NETWORK = lebesgue(-1, 1)
"""Measure of a density of images as a network sees them."""


def bits_per_dim_error(nats: float, dims: int) -> float:
    """A standard error in nats as one in bits per dimension."""
    return nats / (dims * math.log(2.0))


def bits_per_dim(
    nats: Tensor | float, dims: int, measure: str = COUNTS, levels: int = LEVELS
) -> Tensor | float:
    """-log2 P per dimension, P the probability of pixels.

    Of a density it is that of the pixels' bins, as if it were the same all over them: the constant is
    log2(levels / range), 7 for [-1, 1] and 8 for [0, 1] with 256 levels.

    Args:
        nats: log-likelihood, summed over dimensions.
        dims: D.
        measure: what the likelihood is of: ``COUNTS``, or as :func:`lebesgue` names it.
        levels: values that a pixel takes, whose bins tile the range.

    Raises:
        ValueError: the measure has no range that bins could tile.
    """
    if measure == COUNTS:
        return -nats / (dims * math.log(2.0))
    found = _RANGE.fullmatch(measure)
    if found is None:
        raise ValueError(f"a log-likelihood of measure {measure!r} has no bits per dimension")
    low, high = map(float, found.groups())
    return -nats / (dims * math.log(2.0)) + math.log2(levels / (high - low))
