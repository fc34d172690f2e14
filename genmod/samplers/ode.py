"""Solvers of the probability-flow equation from noise to data, as pure functions over a denoiser.

    dx/dsigma = (x - D(x; sigma)) / sigma                  Eq. 3, Karras et al. 2022, with sigma(t) = t

The state is float64 whatever the denoiser computes in; all rows share the noise levels, and fresh noise is
addressed by row, so no row depends on another. Letters: B batch, C channels, H height, W width.

References:
    Elucidating the design space of diffusion-based generative models, Karras et al. 2022,
    https://arxiv.org/abs/2206.00364
    Denoising diffusion implicit models, Song et al. 2021, https://arxiv.org/abs/2010.02502
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genmod.rng import Rng

Denoise = Callable[[Tensor, float], Tensor]
"""Denoiser D(x_BCHW, sigma): E[clean | x], the noise of all rows having the standard deviation ``sigma``."""

DenoiseRows = Callable[[Tensor, Tensor], Tensor]
"""Denoiser D(x_BCHW, sigma_B): as :data:`Denoise`, with one noise level per row."""


@dataclass(frozen=True)
class Churn:
    """Noise added before each step and removed by it. Alg. 2, Karras et al. 2022."""

    total: float
    """S_churn, shared among the steps."""
    sigma_low: float
    """S_tmin: no noise is added below this level."""
    sigma_high: float
    """S_tmax: nor above this one."""
    noise_scale: float
    """S_noise, standard deviation of the added noise, about 1."""

    def factor(self, sigma: float, steps: int) -> float:
        """gamma: the level is raised to (1 + gamma) sigma."""
        if not self.sigma_low <= sigma <= self.sigma_high:
            return 0.0
        return min(self.total / steps, math.sqrt(2) - 1)


def heun(
    denoise: Denoise,
    x_BCHW: Tensor,
    sigmas: Tensor,
    rng: Rng | None = None,
    churn: Churn | None = None,
) -> Tensor:
    """Heun's method of second order, 2 (len(sigmas) - 1) - 1 calls. Alg. 1 and 2, Karras et al. 2022.

    Args:
        denoise: D(x; sigma).
        x_BCHW: images at the level ``sigmas[0]``.
        sigmas: falling; if the last is 0, the last step is Euler's.
        rng: one row for each image; needed for churn only.
        churn: stochasticity, None for the deterministic solver.

    Returns:
        Images at the level ``sigmas[-1]``, float64.
    """
    return _solve(denoise, x_BCHW, sigmas, rng, churn, second_order=True)


def ddim(
    denoise: Denoise,
    x_BCHW: Tensor,
    sigmas: Tensor,
    rng: Rng | None = None,
    churn: Churn | None = None,
) -> Tensor:
    """Euler's method, len(sigmas) - 1 calls; in this parameterisation it is DDIM (App. C.1, Karras et al.).

    Arguments and result as for :func:`heun`.
    """
    return _solve(denoise, x_BCHW, sigmas, rng, churn, second_order=False)


def _solve(
    denoise: Denoise,
    x_BCHW: Tensor,
    sigmas: Tensor,
    rng: Rng | None,
    churn: Churn | None,
    *,
    second_order: bool,
) -> Tensor:
    levels: list[float] = sigmas.tolist()
    x_BCHW = x_BCHW.to(torch.float64)
    for i, (level, sigma_next) in enumerate(itertools.pairwise(levels)):
        sigma = level
        gamma = churn.factor(level, len(levels) - 1) if churn else 0.0
        if churn and gamma > 0:
            assert rng is not None, "churn needs an rng"
            sigma = level * (1 + gamma)
            noise_BCHW = rng.fold("churn").at(i).normal(*x_BCHW.shape[1:], dtype=x_BCHW.dtype)
            extra = math.sqrt(sigma**2 - level**2) * churn.noise_scale
            x_BCHW = x_BCHW + extra * noise_BCHW
        slope_BCHW = (x_BCHW - denoise(x_BCHW, sigma)) / sigma
        step = sigma_next - sigma
        x_next_BCHW = x_BCHW + step * slope_BCHW
        if second_order and sigma_next > 0:
            slope_next_BCHW = (x_next_BCHW - denoise(x_next_BCHW, sigma_next)) / sigma_next
            x_next_BCHW = x_BCHW + step * 0.5 * (slope_BCHW + slope_next_BCHW)
        x_BCHW = x_next_BCHW
    return x_BCHW
