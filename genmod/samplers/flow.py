"""How a probability flow is solved, as a recipe says it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from genmod.config import Config
from genmod.rng import Rng
from genmod.samplers.ode import Churn, Denoise, ddim, heun
from genmod.samplers.schedule import edm_sigmas


class FlowSolver(Config):
    """The solver from noise to an image, its steps and its stochasticity."""

    solver: Literal["heun", "ddim"] = "heun"
    """``heun``: order 2, 2 steps - 1 calls of the net. ``ddim``: order 1, as many calls as steps."""
    steps: int = Field(default=18, ge=1)
    """Steps from sigma_max to 0."""
    rho: float = Field(default=7.0, gt=0)
    """Spacing of the noise levels. Eq. 5, Karras et al. 2022."""
    churn: float = Field(default=0.0, ge=0)
    """S_churn: noise added and removed on the way, 0 for none. Alg. 2, Karras et al. 2022."""
    churn_low: float = Field(default=0.05, ge=0)
    """S_tmin."""
    churn_high: float = Field(default=50.0, gt=0)
    """S_tmax."""
    churn_noise: float = Field(default=1.003, gt=0)
    """S_noise."""

    @property
    def solves_the_flow(self) -> bool:
        """Whether the images follow the flow: at least 12 steps of Heun or 50 of DDIM, and no churn.

        Churn makes another process, with the same marginals for a perfect denoiser only.
        """
        return self.churn == 0.0 and self.steps >= (12 if self.solver == "heun" else 50)

    def solve(
        self, denoise: Denoise, x_BCHW: Tensor, rng: Rng, sigma_min: float, sigma_max: float
    ) -> Tensor:
        """From ``x_BCHW`` at sigma_max to clean images, float64; churn is addressed by ``rng``'s rows."""
        sigmas = edm_sigmas(self.steps, sigma_min, sigma_max, self.rho)
        churn = None
        if self.churn:
            churn = Churn(self.churn, self.churn_low, self.churn_high, self.churn_noise)
        method = heun if self.solver == "heun" else ddim
        return method(denoise, x_BCHW, sigmas, rng, churn)
