"""Noise levels: their distribution in training, and EDM's levels for sampling. Letters: B batch.

References:
    Elucidating the design space of diffusion-based generative models, Karras et al. 2022,
    https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from genmod.config import Config
from genmod.samplers import ddpm


class TrainingNoise(Config):
    """Distribution of noise levels in training: log-normal, log-uniform for some rows; or DDPM's."""

    schedule: Literal["lognormal", "linear", "cosine"] = "lognormal"
    """``lognormal``: ln sigma is normal (EDM). ``linear``, ``cosine``: uniform over DDPM's 1000 levels."""
    P_mean: float = Field(default=-1.2, ge=-100, le=100)
    """Mean of ln sigma. Table 1, Karras et al. 2022; larger for small, simple images."""
    P_std: float = Field(default=1.2, gt=0, le=100)
    """Standard deviation of ln sigma."""
    uniform_share: float = Field(default=0.1, ge=0, le=1)
    """Share of rows whose level is log-uniform over the model's range, because log p uses all levels."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.schedule != "lognormal":
            for name in ("P_mean", "P_std", "uniform_share"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"noise.{name} applies only to schedule lognormal, got schedule {self.schedule}; "
                        f"remove noise.{name}"
                    )
        return self

    def check_range(self, sigma_min: float, sigma_max: float) -> None:
        """Check that the model's noise levels are all trained.

        Raises:
            ConfigError: some are outside the range of the DDPM schedule.
        """
        if self.schedule != "lognormal":
            ddpm.ddpm_schedule(self.schedule).check_range(
                f"net.noise.schedule={self.schedule}", sigma_min, sigma_max
            )

    def quantile(self, u_B: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
        """Map uniform numbers in (0, 1) to noise levels, (B,).

        Numbers below ``uniform_share`` map to log-uniform levels, the others to log-normal ones. A DDPM
        schedule uses all of its levels, also those outside the model's range.
        """
        if self.schedule != "lognormal":
            return ddpm.ddpm_schedule(self.schedule).quantile(u_B)
        low, high = math.log(sigma_min), math.log(sigma_max)
        share = self.uniform_share
        log_uniform_B = low + (high - low) * (u_B / share if share else u_B)
        rest_B = (u_B - share) / (1 - share) if share < 1 else u_B
        log_normal_B = self.P_mean + self.P_std * torch.special.ndtri(rest_B)
        return torch.where(u_B < share, log_uniform_B, log_normal_B).exp()


def edm_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """EDM's noise levels: evenly spaced in sigma^(1/rho). Eq. 5, Karras et al. 2022.

    Args:
        steps: at least 1; the last step goes from ``sigma_min`` to 0.
        sigma_min: the lowest level above 0.
        sigma_max: the level of the prior.
        rho: 7 for sampling; larger values put more levels near ``sigma_min``.

    Returns:
        float64 of shape (steps + 1,): from ``sigma_max`` down to ``sigma_min``, then 0. With one step
        it is (sigma_max, 0).

    >>> [round(sigma, 3) for sigma in edm_sigmas(3, 0.002, 80.0, 7.0).tolist()]
    [80.0, 2.515, 0.002, 0.0]
    """
    if steps == 1:
        return torch.tensor([sigma_max, 0.0], dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    fraction = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    levels = (high + fraction * (low - high)) ** rho
    levels[0], levels[-1] = sigma_max, sigma_min  # exactly, without rounding
    return torch.cat((levels, levels.new_zeros(1)))
