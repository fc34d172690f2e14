"""Dequantisation: draws points in the pixels' bins, so that a density of points bounds log P(pixels).

    log P(pixels) >= E_q[log p(y) - log q(y | pixels)],   y ~ q, whose support is the pixels' bins   (Jensen)

Letters: B rows, C channels, H height, W width.

References:
    A note on the evaluation of generative models (uniform, sec. 3.1), Theis et al. 2016,
    https://arxiv.org/abs/1511.01844
    Improved techniques for maximum likelihood estimation for diffusion ODEs (truncated normal, sec. 3.2),
    Zheng et al. 2023, https://arxiv.org/abs/2305.03935
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genmod import units
from genmod.manifest import ImageSpec
from genmod.rng import Rng


def uniform(x_BCHW: Tensor, rng: Rng, spec: ImageSpec) -> tuple[Tensor, Tensor]:
    """Uniform dequantisation: y is uniform in the bins of x's pixels.

    Args:
        x_BCHW: float64 images in network units, the middles of their pixels' bins.
        rng: B rows.
        spec: image format.

    Returns:
        y (B, C, H, W) and log q(y | pixels), (B,) in nats.
    """
    y_BCHW = units.dequantise(x_BCHW, rng.uniform(*spec.shape, dtype=x_BCHW.dtype), spec.levels)
    log_q_B = x_BCHW.new_full((len(rng),), -units.log_bin_volume(spec.dims, spec.levels))
    return y_BCHW, log_q_B


def truncated_normal(
    x_BCHW: Tensor, rng: Rng, spec: ImageSpec, std: float
) -> tuple[Tensor, Tensor]:
    """Truncated normal dequantisation: y is Gaussian around the bin's middle, truncated to the bin.

    It resembles data with a little Gaussian noise. Arguments and result are those of :func:`uniform`;
    ``std`` is the standard deviation before truncation. For binary images, too, y stays within half an 8-bit
    bin of the middle.
    """
    bound = units.HALF_BIN / std
    mass = math.erf(bound / math.sqrt(2))
    u_BCHW = rng.uniform(*spec.shape, dtype=torch.float64) + 2.0**-33
    eps_BCHW = torch.special.ndtri(0.5 + mass * (u_BCHW - 0.5))
    log_q_BCHW = -0.5 * eps_BCHW.square() - math.log(std * mass * math.sqrt(2 * math.pi))
    return x_BCHW + std * eps_BCHW, log_q_BCHW.flatten(1).sum(1)
