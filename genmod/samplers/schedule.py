"""Noise levels for solving a diffusion's equation, from noise to data."""

from __future__ import annotations

import torch
from torch import Tensor


def edm_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Noise levels equally spaced in sigma^(1/rho). Eq. 5, Karras et al. 2022.

    Args:
        steps: at least 1; the last one goes from ``sigma_min`` to 0.
        sigma_min: the lowest level above 0.
        sigma_max: the level of the prior.
        rho: 7 for sampling; the larger, the more levels are near ``sigma_min``.

    Returns:
        float64 of shape (steps + 1,), falling from ``sigma_max`` to ``sigma_min`` and 0. With one step
        it is (sigma_max, 0).
    """
    if steps == 1:
        return torch.tensor([sigma_max, 0.0], dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    fraction = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    levels = (high + fraction * (low - high)) ** rho
    levels[0], levels[-1] = sigma_max, sigma_min  # as given, not as rounded
    return torch.cat((levels, levels.new_zeros(1)))
