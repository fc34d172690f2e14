"""Noise levels: those a denoiser is trained on, and those its equation is solved at. Letters: B batch.

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
    """Noise levels in training: log-normal and for a share of the rows log-uniform, or DDPM's."""

    schedule: Literal["lognormal", "linear", "cosine"] = "lognormal"
    """``linear`` and ``cosine``: each of DDPM's 1000 levels as often, and none between them."""
    P_mean: float = -1.2
    """P_mean, of ln sigma. Table 1, Karras et al. 2022; higher for small images of simple things."""
    P_std: float = Field(default=1.2, gt=0)
    """P_std, of ln sigma."""
    uniform_share: float = Field(default=0.1, ge=0, le=1)
    """Share of rows at a level from anywhere in the model's range, for log p asks for all of them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.schedule != "lognormal":
            for name in ("P_mean", "P_std", "uniform_share"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"noise.{name} is of schedule lognormal, not of {self.schedule}"
                    )
        return self

    def check_range(self, sigma_min: float, sigma_max: float) -> None:
        """ConfigError if a model's noise levels reach beyond those that it is trained on."""
        if self.schedule != "lognormal":
            ddpm.ddpm_schedule(self.schedule).require(
                f"net.noise.schedule={self.schedule}", sigma_min, sigma_max
            )

    def quantile(self, u_B: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
        """(B,) noise levels that uniform numbers in (0, 1) stand for, one number a level.

        Numbers below ``uniform_share`` map to log-uniform levels, the others to log-normal ones. A DDPM
        schedule uses all of its levels, also those outside the model's range.
        """
        if self.schedule != "lognormal":
            return ddpm.ddpm_schedule(self.schedule).draw(u_B)
        low, high = math.log(sigma_min), math.log(sigma_max)
        anywhere_B = low + (high - low) * (u_B / self.uniform_share if self.uniform_share else u_B)
        rest_B = (
            (u_B - self.uniform_share) / (1 - self.uniform_share) if self.uniform_share < 1 else u_B
        )
        usual_B = self.P_mean + self.P_std * torch.special.ndtri(rest_B)
        return torch.where(u_B < self.uniform_share, anywhere_B, usual_B).exp()


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
