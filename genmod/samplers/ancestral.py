"""Stochastic samplers: DDPM's ancestral sampler and multistep consistency sampling.

Letters: B batch, C channels, H height, W width.

References:
    Denoising diffusion probabilistic models, Ho et al. 2020, https://arxiv.org/abs/2006.11239
    Consistency models, Song et al. 2023, https://arxiv.org/abs/2303.01469
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from genmod.rng import Rng
from genmod.samplers.ode import Denoise


def ancestral(denoise: Denoise, x_BCHW: Tensor, sigmas: Tensor, rng: Rng) -> Tensor:
    """DDPM's sampler: each step draws from q(x_next | x, D). Eq. 6 and 7, Ho et al. 2020.

    For x = image + sigma eps the mean is r x + (1 - r) D, with r = (sigma_next / sigma)^2. The variance is
    sigma_next^2 (1 - r), the smaller of DDPM's two choices.

    Args:
        denoise: D(x; sigma).
        x_BCHW: images with noise of level ``sigmas[0]``.
        sigmas: decreasing noise levels; if the last one is 0, the result is D.
        rng: one row per image.

    Returns:
        Images with noise of level ``sigmas[-1]``, float64.
    """
    x_BCHW = x_BCHW.to(torch.float64)
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas.tolist())):
        kept = (sigma_next / sigma) ** 2
        x_BCHW = kept * x_BCHW + (1 - kept) * denoise(x_BCHW, sigma).to(torch.float64)
        if sigma_next > 0:
            noise_BCHW = _noise(rng, i, x_BCHW)
            x_BCHW = x_BCHW + sigma_next * math.sqrt(1 - kept) * noise_BCHW
    return x_BCHW


def consistency(denoise: Denoise, x_BCHW: Tensor, sigmas: Tensor, rng: Rng) -> Tensor:
    """Multistep consistency sampling: predict the image, add noise of the next level, repeat.

    Alg. 1, Song et al. 2023.

    Args:
        denoise: a consistency function, which maps each point of a flow trajectory to its end.
        x_BCHW: images with noise of level ``sigmas[0]``.
        sigmas: decreasing noise levels above 0; one network evaluation each.
        rng: one row per image.

    Returns:
        Clean images, float64.
    """
    levels: list[float] = sigmas.tolist()
    x_BCHW = denoise(x_BCHW.to(torch.float64), levels[0]).to(torch.float64)
    for i, sigma in enumerate(levels[1:]):
        x_BCHW = denoise(x_BCHW + sigma * _noise(rng, i, x_BCHW), sigma).to(torch.float64)
    return x_BCHW


def _noise(rng: Rng, step: int, like_BCHW: Tensor) -> Tensor:
    """Standard normal noise, addressed by row and step."""
    return rng.fold("step").at(step).normal(*like_BCHW.shape[1:], dtype=like_BCHW.dtype)
