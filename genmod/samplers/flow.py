"""Sampling options of a diffusion model: solver, steps, noise levels and stochasticity."""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from genmod.config import Config
from genmod.errors import ConfigError
from genmod.rng import Rng
from genmod.samplers import ddpm
from genmod.samplers.ancestral import ancestral, consistency
from genmod.samplers.multistep import dpm_solver, unipc
from genmod.samplers.ode import Churn, Denoise, ddim, heun
from genmod.samplers.schedule import edm_sigmas

_FINE_STEPS = {"heun": 12, "ddim": 50, "dpm_solver": 20, "unipc": 16}
"""Steps from which on a solver follows the probability flow closely."""

_MIN_ANCESTRAL_STEPS = 500
"""Steps from which on the ancestral sampler follows the reverse process closely."""


class FlowSolver(Config):
    """The solver that turns noise into an image, with its steps and its stochasticity."""

    solver: Literal["heun", "ddim", "dpm_solver", "unipc", "ancestral", "consistency"] = "heun"
    """``heun``: order 2, with 2 steps - 1 network evaluations; all others use one per step. ``ddim``: order
    1. ``dpm_solver``: DPM-Solver++(2M), order 2. ``unipc``: order 3. ``ancestral``: DDPM's stochastic
    sampler, for about 1000 steps. ``consistency``: for a consistency model, 1 to 4 steps."""
    steps: int = Field(default=18, ge=1, le=100_000)
    """Steps from sigma_max to 0."""
    spacing: Literal["edm", "log", "linear", "cosine"] = "edm"
    """Spacing of the noise levels. ``edm``: by ``rho``. ``log``: even in ln sigma. ``linear``, ``cosine``:
    even in the time of that DDPM schedule. Solver ``consistency`` always uses even steps of ln sigma, down to
    ``last``."""
    rho: float = Field(default=7.0, ge=0.1, le=1e3)
    """Exponent of the spacing ``edm``. Eq. 5, Karras et al. 2022."""
    last: float = Field(default=0.8, ge=1e-6, le=1e6)
    """Last noise level of solver ``consistency``, if it takes several steps."""
    churn: float = Field(default=0.0, ge=0, le=1e6)
    """S_churn: amount of noise added and removed during sampling; 0 for none. Alg. 2, Karras et al. 2022."""
    churn_low: float = Field(default=0.05, ge=0, le=1e6)
    """S_tmin: lowest noise level with churn."""
    churn_high: float = Field(default=50.0, gt=0, le=1e6)
    """S_tmax: highest noise level with churn."""
    churn_noise: float = Field(default=1.003, gt=0, le=100)
    """S_noise: factor on the standard deviation of the added noise."""

    @model_validator(mode="after")
    def _check_churn(self) -> Self:
        if self.churn and self.solver not in ("heun", "ddim"):
            raise ValueError(
                f"churn needs solver heun or ddim, got {self.solver}; change solver or set churn to 0"
            )
        return self

    @property
    def nfe(self) -> int:
        """Network evaluations per image (NFE), without those that guidance adds."""
        return 2 * self.steps - 1 if self.solver == "heun" else self.steps

    @property
    def solves_the_flow(self) -> bool:
        """Whether samples follow the probability flow: enough steps of an ODE solver, and no churn.

        With added noise it is another process, which has the same marginals only for a perfect denoiser.
        """
        return self.churn == 0.0 and self.steps >= _FINE_STEPS.get(self.solver, math.inf)

    @property
    def follows_the_process(self) -> bool:
        """Whether samples follow the reverse process that the variational bound belongs to."""
        return self.solver == "ancestral" and self.steps >= _MIN_ANCESTRAL_STEPS

    def sigmas(self, sigma_min: float, sigma_max: float) -> Tensor:
        """Noise levels, decreasing from ``sigma_max``, float64; the last is 0, except for ``consistency``.

        Raises:
            ConfigError: the model's range of noise levels does not fit ``spacing`` or ``last``.
        """
        if self.solver == "consistency":
            if self.last >= sigma_max:
                raise ConfigError(
                    f"sample.last: got {self.last:g}, expected less than net.sigma_max={sigma_max:g}"
                )
            return _log_spaced(self.steps, self.last, sigma_max)
        if self.spacing == "edm":
            return edm_sigmas(self.steps, sigma_min, sigma_max, self.rho)
        if self.spacing == "log":
            levels = _log_spaced(self.steps, sigma_min, sigma_max)
            return torch.cat((levels, levels.new_zeros(1)))
        schedule = ddpm.ddpm_schedule(self.spacing)
        schedule.check_range(f"sample.spacing={self.spacing}", sigma_min, sigma_max)
        return schedule.spaced(self.steps, sigma_min, sigma_max)

    def solve(
        self, denoise: Denoise, x_BCHW: Tensor, rng: Rng, sigma_min: float, sigma_max: float
    ) -> Tensor:
        """Turn noise into images.

        Args:
            denoise: D(x; sigma).
            x_BCHW: draws of the prior, at sigma_max.
            rng: one row per image, for solvers that add noise.
            sigma_min: the model's lowest noise level.
            sigma_max: the model's highest noise level.

        Returns:
            Clean images, (B, C, H, W) float64.
        """
        sigmas = self.sigmas(sigma_min, sigma_max)
        match self.solver:
            case "dpm_solver":
                return dpm_solver(denoise, x_BCHW, sigmas)
            case "unipc":
                return unipc(denoise, x_BCHW, sigmas)
            case "ancestral":
                return ancestral(denoise, x_BCHW, sigmas, rng)
            case "consistency":
                return consistency(denoise, x_BCHW, sigmas, rng)
            case "heun" | "ddim":
                churn = None
                if self.churn:
                    churn = Churn(self.churn, self.churn_low, self.churn_high, self.churn_noise)
                method = heun if self.solver == "heun" else ddim
                return method(denoise, x_BCHW, sigmas, rng, churn)


def _log_spaced(levels: int, low: float, high: float) -> Tensor:
    """Noise levels evenly spaced in ln sigma from ``high`` to ``low``, float64; a single one is ``high``."""
    spaced = torch.linspace(math.log(high), math.log(low), levels, dtype=torch.float64).exp()
    if levels > 1:
        spaced[-1] = low
    spaced[0] = high  # exactly, without rounding
    return spaced
