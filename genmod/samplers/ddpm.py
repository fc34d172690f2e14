"""DDPM's noise schedules, and denoisers made from nets that other libraries trained on them.

DDPM scales images down while it adds noise: x_t = alpha_t y + sqrt(1 - alpha_t^2) eps. Divided by alpha_t
this is y + sigma eps with sigma = sqrt(1 - alpha_t^2) / alpha_t. So a schedule is a list of noise levels, and
the same samplers work for all nets. Letters: B batch, C channels, H height, W width, T steps.

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

DDPMPrediction = Literal["eps", "x0", "v"]
"""What a net predicts: the noise eps, the image x0, or v = alpha eps - sqrt(1 - alpha^2) y."""

_STEPS = 1000
"""T, the number of time steps in both papers."""

_OFFSET, _MAX_BETA = 0.008, 0.999
"""s, and the upper limit of beta. Sec. 3.2, Nichol and Dhariwal 2021."""


@dataclass(frozen=True)
class DDPMSchedule:
    """The noise levels of a schedule at the times 1 (least noise) to T (most noise)."""

    sigma_T: Tensor
    """float64, increasing."""

    @property
    def sigma_min(self) -> float:
        """Noise level at time 1."""
        return float(self.sigma_T[0])

    @property
    def sigma_max(self) -> float:
        """Noise level at time T."""
        return float(self.sigma_T[-1])

    def check_range(self, option: str, sigma_min: float, sigma_max: float) -> None:
        """Check that a model's noise levels are inside the schedule's.

        Args:
            option: the option that selected this schedule, for the error.
            sigma_min: the model's lowest noise level.
            sigma_max: the model's highest noise level.

        Raises:
            ConfigError: they are not.
        """
        low, high = self.sigma_min * (1 - 1e-6), self.sigma_max * (1 + 1e-6)
        if not low <= sigma_min < sigma_max <= high:
            raise ConfigError(
                f"{option}: got net.sigma_min={sigma_min:g} and net.sigma_max={sigma_max:g}, expected values "
                f"inside the schedule's range {self.sigma_min:.6g} .. {self.sigma_max:.6g}"
            )

    def quantile(self, u_B: Tensor) -> Tensor:
        """Map uniform numbers in [0, 1) to noise levels, all times equally likely. Alg. 1, Ho et al. 2020."""
        return self.sigma_T.to(u_B.device)[(u_B * _STEPS).long()].to(u_B.dtype)

    def time(self, sigma: float) -> float:
        """The time of a noise level, in 1 .. T; interpolated linearly in ln sigma."""
        assert self.sigma_min * (1 - 1e-5) <= sigma <= self.sigma_max * (1 + 1e-5), sigma
        above = int(torch.searchsorted(self.sigma_T, sigma).clamp(1, _STEPS - 1))
        low, high = float(self.sigma_T[above - 1]), float(self.sigma_T[above])
        return above + math.log(sigma / low) / math.log(high / low)

    def spaced(self, steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        """``steps`` noise levels evenly spaced in time, from ``sigma_max`` down to ``sigma_min``, then 0."""
        times = torch.linspace(
            self.time(sigma_max), self.time(sigma_min), steps, dtype=torch.float64
        )
        below = (times.floor().long().clamp(1, _STEPS - 1)) - 1
        weight = times - 1 - below
        log_T = self.sigma_T.log()
        sigmas = (log_T[below] + weight * (log_T[below + 1] - log_T[below])).exp()
        sigmas[0] = sigma_max
        if steps > 1:
            sigmas[-1] = sigma_min
        return torch.cat((sigmas, sigmas.new_zeros(1)))


@lru_cache(maxsize=2)
def ddpm_schedule(schedule: ScheduleName) -> DDPMSchedule:
    """The noise levels of DDPM's ``linear`` or ``cosine`` schedule.

    >>> round(ddpm_schedule("linear").sigma_max)
    157
    """
    # On the CPU also where a model is built on the meta device, since the result is cached.
    float64, cpu = torch.float64, torch.device("cpu")
    if schedule == "linear":
        beta_T = torch.linspace(1e-4, 0.02, _STEPS, dtype=float64, device=cpu)
    else:
        share = torch.arange(_STEPS + 1, dtype=float64, device=cpu) / _STEPS
        alpha_bar = (((share + _OFFSET) / (1 + _OFFSET)) * (math.pi / 2)).cos() ** 2
        beta_T = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=_MAX_BETA)
    alpha_bar_T = (1 - beta_T).cumprod(0)  # alpha_t squared
    return DDPMSchedule(((1 - alpha_bar_T) / alpha_bar_T).sqrt())


DDPMNet = Callable[[Tensor, Tensor], Tensor]
"""A net with DDPM's interface, as in diffusers: (x_t, times 0 .. T - 1 of the rows) -> prediction."""


def ddpm_denoiser(
    net: DDPMNet,
    prediction: DDPMPrediction,
    schedule: ScheduleName,
    dtype: torch.dtype = torch.float32,
) -> Denoise:
    """The denoiser D(x; sigma) of a net with DDPM's interface, for every sampler of this package.

    Args:
        net: a module with loaded weights, or any function.
        prediction: what the net predicts.
        schedule: the schedule that the net was trained on. Noise levels between two of its times are passed
            as fractional times.
        dtype: dtype of the net's weights; images and times are converted to it. Samplers keep float64.
    """
    noise_schedule = ddpm_schedule(schedule)

    def denoise(x_BCHW: Tensor, sigma: float) -> Tensor:
        alpha = 1 / math.hypot(1, sigma)
        t = noise_schedule.time(sigma) - 1
        if math.isclose(t, round(t), abs_tol=1e-6):
            t = float(round(t))  # an integer time, up to rounding
        t_B = x_BCHW.new_full(x_BCHW.shape[:1], t, dtype=dtype)
        output_BCHW = net((alpha * x_BCHW).to(dtype), t_B).to(x_BCHW.dtype)
        if prediction == "x0":
            return output_BCHW
        if prediction == "eps":
            return x_BCHW - sigma * output_BCHW
        return alpha**2 * x_BCHW - alpha * sigma * output_BCHW  # alpha x_t - sqrt(1 - alpha^2) v

    return denoise
