"""Solvers of the probability-flow ODE from noise to data: Heun's method and DDIM, as pure functions.

    dx/dsigma = (x - D(x; sigma)) / sigma                  Eq. 3, Karras et al. 2022, with sigma(t) = t

The state is float64, whatever dtype the denoiser uses. All rows share the noise levels, and added noise is
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
    """Churn: noise that is added before each step and removed by it. Alg. 2, Karras et al. 2022."""

    total: float
    """S_churn, divided among the steps."""
    sigma_low: float
    """S_tmin: lowest noise level with churn."""
    sigma_high: float
    """S_tmax: highest noise level with churn."""
    noise_scale: float
    """S_noise: standard deviation of the added noise, about 1."""

    def factor(self, sigma: float, steps: int) -> float:
        """gamma: the step begins at the noise level (1 + gamma) sigma."""
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
    """Heun's second-order method, 2 (len(sigmas) - 1) - 1 evaluations. Alg. 1 and 2, Karras et al. 2022.

    Args:
        denoise: D(x; sigma).
        x_BCHW: images with noise of level ``sigmas[0]``.
        sigmas: decreasing noise levels; if the last one is 0, the last step is Euler's.
        rng: one row per image; required only with churn.
        churn: stochasticity; None for the deterministic solver.

    Returns:
        Images with noise of level ``sigmas[-1]``, float64.
    """
    return _solve(denoise, x_BCHW, sigmas, rng, churn, second_order=True)


def ddim(
    denoise: Denoise,
    x_BCHW: Tensor,
    sigmas: Tensor,
    rng: Rng | None = None,
    churn: Churn | None = None,
) -> Tensor:
    """Euler's method, which is DDIM (App. C.1, Karras et al.), with len(sigmas) - 1 evaluations.

    Arguments and result are those of :func:`heun`.
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
        # Churn: raise the noise level by a factor 1 + gamma.
        sigma = level
        gamma = churn.factor(level, len(levels) - 1) if churn else 0.0
        if churn and gamma > 0:
            assert rng is not None, "churn needs an rng"
            sigma = level * (1 + gamma)
            noise_BCHW = rng.fold("churn").at(i).normal(*x_BCHW.shape[1:], dtype=x_BCHW.dtype)
            extra = math.sqrt(sigma**2 - level**2) * churn.noise_scale
            x_BCHW = x_BCHW + extra * noise_BCHW
        # Euler's step, then Heun's correction by the slope at its end.
        slope_BCHW = (x_BCHW - denoise(x_BCHW, sigma)) / sigma
        step = sigma_next - sigma
        x_next_BCHW = x_BCHW + step * slope_BCHW
        if second_order and sigma_next > 0:
            slope_next_BCHW = (x_next_BCHW - denoise(x_next_BCHW, sigma_next)) / sigma_next
            x_next_BCHW = x_BCHW + step * 0.5 * (slope_BCHW + slope_next_BCHW)
        x_BCHW = x_next_BCHW
    return x_BCHW
