"""DDPM's noise schedules, and nets that were trained on them elsewhere as denoisers of ours.

DDPM scales images down while it adds noise: x_t = alpha_t y + sqrt(1 - alpha_t^2) eps. Divided by alpha_t
it is y + sigma eps with sigma = sqrt(1 - alpha_t^2) / alpha_t: a schedule is a list of noise levels, and one
stack of samplers serves all nets. Letters: B batch, C channels, H height, W width, T steps.

References:
    Denoising diffusion probabilistic models, Ho et al. 2020, https://arxiv.org/abs/2006.11239
    Improved denoising diffusion probabilistic models, Nichol and Dhariwal 2021,
    https://arxiv.org/abs/2102.09672
    Progressive distillation for fast sampling of diffusion models (v), Salimans and Ho 2022,
    https://arxiv.org/abs/2202.00512
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from genmod.errors import ConfigError
from genmod.samplers.ode import Denoise

ScheduleName = Literal["linear", "cosine"]
"""``linear``: beta from 1e-4 to 0.02, Sec. 4, Ho et al. ``cosine``: Eq. 17, Nichol and Dhariwal."""

PredictionType = Literal["eps", "x0", "v"]
"""What a net gives: the noise, the image, or alpha eps - sqrt(1 - alpha^2) y."""

_STEPS = 1000
"""T, of both papers."""

_OFFSET, _MOST = 0.008, 0.999
"""s, and the upper limit of beta. Sec. 3.2, Nichol and Dhariwal 2021."""


@dataclass(frozen=True)
class DDPMSchedule:
    """The noise levels of a schedule, by time: 1 is the least noise, T the most."""

    sigma_T: Tensor
    """float64, rising."""

    @property
    def least(self) -> float:
        """Noise at time 1."""
        return float(self.sigma_T[0])

    @property
    def most(self) -> float:
        """Noise at time T."""
        return float(self.sigma_T[-1])

    def require(self, what: str, sigma_min: float, sigma_max: float) -> None:
        """ConfigError if a model's noise levels are not inside the schedule's."""
        low, high = self.least * (1 - 1e-6), self.most * (1 + 1e-6)
        if not low <= sigma_min < sigma_max <= high:
            raise ConfigError(
                f"{what}: the schedule goes from {self.least:.6g} to {self.most:.6g}, the model's noise from "
                f"{sigma_min:g} to {sigma_max:g}; set net.sigma_min and net.sigma_max inside"
            )

    def draw(self, u_B: Tensor) -> Tensor:
        """DDPMSchedule that uniform numbers in [0, 1) stand for, all times alike. Alg. 1, Ho et al. 2020."""
        return self.sigma_T.to(u_B.device)[(u_B * _STEPS).long()].to(u_B.dtype)

    def time(self, sigma: float) -> float:
        """When the noise is at a level; between two times, linear in ln sigma."""
        assert self.least * (1 - 1e-5) <= sigma <= self.most * (1 + 1e-5), sigma
        above = int(torch.searchsorted(self.sigma_T, sigma).clamp(1, _STEPS - 1))
        low, high = float(self.sigma_T[above - 1]), float(self.sigma_T[above])
        return above + math.log(sigma / low) / math.log(high / low)

    def spaced(self, steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        """``steps`` levels evenly spaced in time, falling from ``sigma_max`` to ``sigma_min``, and 0."""
        times = torch.linspace(
            self.time(sigma_max), self.time(sigma_min), steps, dtype=torch.float64
        )
        below = (times.floor().long().clamp(1, _STEPS - 1)) - 1
        part = times - 1 - below
        log_T = self.sigma_T.log()
        sigmas = (log_T[below] + part * (log_T[below + 1] - log_T[below])).exp()
        sigmas[0] = sigma_max
        if steps > 1:
            sigmas[-1] = sigma_min
        return torch.cat((sigmas, sigmas.new_zeros(1)))


@lru_cache(maxsize=2)
def ddpm_schedule(schedule: ScheduleName) -> DDPMSchedule:
    """The levels of a schedule."""
    if schedule == "linear":
        beta_T = torch.linspace(1e-4, 0.02, _STEPS, dtype=torch.float64)
    else:
        share = torch.arange(_STEPS + 1, dtype=torch.float64) / _STEPS
        kept = (((share + _OFFSET) / (1 + _OFFSET)) * (math.pi / 2)).cos() ** 2
        beta_T = (1 - kept[1:] / kept[:-1]).clamp(max=_MOST)
    kept_T = (1 - beta_T).cumprod(0)  # alpha_t squared
    return DDPMSchedule(((1 - kept_T) / kept_T).sqrt())


Net = Callable[[Tensor, Tensor], Tensor]
"""A net as others train them: (x_t, t of each row from 0 to T - 1) to its prediction."""


def ddpm_denoiser(
    net: Net, prediction: PredictionType, schedule: ScheduleName, dtype: torch.dtype = torch.float32
) -> Denoise:
    """D(x; sigma) of a net that was trained elsewhere, for every sampler here.

    Args:
        net: a module with its weights loaded, or any function.
        prediction: what it gives.
        schedule: that it was trained on. Between two of its times it is asked for a fractional one.
        dtype: of its weights; it is given images and times of that type. Samplers' states stay float64.
    """
    of = ddpm_schedule(schedule)

    def denoise(x_BCHW: Tensor, sigma: float) -> Tensor:
        alpha = 1 / math.hypot(1, sigma)
        t = of.time(sigma) - 1
        if math.isclose(t, round(t), abs_tol=1e-6):
            t = float(round(t))  # one of its own times, up to rounding
        t_B = x_BCHW.new_full(x_BCHW.shape[:1], t, dtype=dtype)
        given_BCHW = net((alpha * x_BCHW).to(dtype), t_B).to(x_BCHW.dtype)
        if prediction == "x0":
            return given_BCHW
        if prediction == "eps":
            return x_BCHW - sigma * given_BCHW
        return alpha**2 * x_BCHW - alpha * sigma * given_BCHW  # alpha x_t - sqrt(1 - alpha^2) v

    return denoise
