"""How noise is turned into an image, as a recipe says it."""

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
"""Steps from which on a solver follows the flow."""

_MIN_ANCESTRAL_STEPS = 500
"""Steps from which on the ancestral sampler follows the noisy process."""


class FlowSolver(Config):
    """The solver from noise to an image, its steps and its stochasticity."""

    solver: Literal["heun", "ddim", "dpm_solver", "unipc", "ancestral", "consistency"] = "heun"
    """``heun``: order 2, 2 steps - 1 calls of the net. All others call it once a step. ``ddim``: order 1.
    ``dpm_solver``: DPM-Solver++(2M), order 2. ``unipc``: order 3. ``ancestral``: DDPM's own, fresh noise in
    each step, meant for 1000 of them. ``consistency``: of a net tuned for it, 1 to 4 steps."""
    steps: int = Field(default=18, ge=1)
    """Steps from sigma_max to 0."""
    spacing: Literal["edm", "log", "linear", "cosine"] = "edm"
    """Of the noise levels: ``edm`` by ``rho``, ``log`` evenly in ln sigma, ``linear`` and ``cosine`` evenly
    in the time of that DDPM schedule. A consistency net's go evenly in ln sigma down to ``last``."""
    rho: float = Field(default=7.0, gt=0)
    """Spacing of the noise levels. Eq. 5, Karras et al. 2022."""
    last: float = Field(default=0.8, gt=0)
    """Noise before the last of several calls of a consistency net."""
    churn: float = Field(default=0.0, ge=0)
    """S_churn: noise added and removed on the way, 0 for none. Alg. 2, Karras et al. 2022."""
    churn_low: float = Field(default=0.05, ge=0)
    """S_tmin."""
    churn_high: float = Field(default=50.0, gt=0)
    """S_tmax."""
    churn_noise: float = Field(default=1.003, gt=0)
    """S_noise."""

    @model_validator(mode="after")
    def _check_churn(self) -> Self:
        if self.churn and self.solver not in ("heun", "ddim"):
            raise ValueError(f"churn is for heun and ddim; {self.solver} takes none")
        return self

    @property
    def nfe(self) -> int:
        """Of the net for each image, without guidance: NFE."""
        return 2 * self.steps - 1 if self.solver == "heun" else self.steps

    @property
    def solves_the_flow(self) -> bool:
        """Whether the images follow the flow: enough steps (``_FINE_STEPS``) of a solver, and no churn.

        Churn and fresh noise make another process, with the same marginals for a perfect denoiser only.
        """
        return self.churn == 0.0 and self.steps >= _FINE_STEPS.get(self.solver, math.inf)

    @property
    def follows_the_process(self) -> bool:
        """Whether each step draws from the noisy process, finely enough: what the variational bound is of."""
        return self.solver == "ancestral" and self.steps >= _MIN_ANCESTRAL_STEPS

    def sigmas(self, sigma_min: float, sigma_max: float) -> Tensor:
        """The noise levels, falling from ``sigma_max``; the last one is 0, but for a consistency net.

        Raises:
            ConfigError: the model's range is not inside the schedule's.
        """
        if self.solver == "consistency":
            if self.last >= sigma_max:
                raise ConfigError(
                    f"sample.last is {self.last:g}, wanted less than net.sigma_max={sigma_max:g}"
                )
            return _log_spaced(self.steps, self.last, sigma_max)
        if self.spacing == "edm":
            return edm_sigmas(self.steps, sigma_min, sigma_max, self.rho)
        if self.spacing == "log":
            down = _log_spaced(self.steps, sigma_min, sigma_max)
            return torch.cat((down, down.new_zeros(1)))
        of = ddpm.ddpm_schedule(self.spacing)
        of.require(f"sample.spacing={self.spacing}", sigma_min, sigma_max)
        return of.spaced(self.steps, sigma_min, sigma_max)

    def solve(
        self, denoise: Denoise, x_BCHW: Tensor, rng: Rng, sigma_min: float, sigma_max: float
    ) -> Tensor:
        """From ``x_BCHW`` at sigma_max to clean images, float64; fresh noise is addressed by row."""
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
    """DDPMSchedule evenly spaced in ln sigma from ``high`` to ``low``, float64; a single one is ``high``."""
    spaced = torch.linspace(math.log(high), math.log(low), levels, dtype=torch.float64).exp()
    if levels > 1:
        spaced[-1] = low
    spaced[0] = high  # as given, not as rounded
    return spaced
