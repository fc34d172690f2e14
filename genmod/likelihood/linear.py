"""A model that everything is known of: a linear generator under Gaussian noise. A bench for estimators.

    z ~ N(0, 1),  x = W z + c + sigma eps:      p(x) = N(x; c, W W^T + sigma^2 1)

Letters: B rows, D dimensions of x, Z latents, N chains.

References:
    Pattern recognition and machine learning (Eqs. 12.35, 12.42, probabilistic PCA), Bishop 2006
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from genmod.likelihood.gaussian import Gaussian
from genmod.likelihood.iwae import LogJoint
from genmod.rng import Rng, rng_for


@dataclass(frozen=True)
class LinearGaussian:
    """Float64 throughout."""

    slope_DZ: Tensor
    """W."""
    centre_D: Tensor
    """c."""
    sigma: float

    @classmethod
    def random(cls, dims: int, latents: int, sigma: float, seed: int = 0) -> LinearGaussian:
        """Slopes and centre are standard normal numbers of a seed."""
        rng = rng_for(seed, "linear", range(dims))
        slope_DZ = rng.fold("slope").normal(latents, dtype=torch.float64)
        return cls(slope_DZ, rng.fold("centre").normal(dtype=torch.float64), sigma)

    def draw(self, rng: Rng) -> tuple[Tensor, Tensor]:
        """Latents (B, Z) and x (B, D)."""
        dims, latents = self.slope_DZ.shape
        z_BZ = rng.fold("z").normal(latents, dtype=torch.float64)
        eps_BD = rng.fold("noise").normal(dims, dtype=torch.float64)
        return z_BZ, z_BZ @ self.slope_DZ.T + self.centre_D + self.sigma * eps_BD

    def nats(self, x_BD: Tensor) -> Tensor:
        """Log p(x), (B,)."""
        noise_DD = self.sigma**2 * torch.eye(len(self.centre_D), dtype=torch.float64)
        covariance_DD = self.slope_DZ @ self.slope_DZ.T + noise_DD
        return MultivariateNormal(self.centre_D, covariance_DD).log_prob(x_BD)

    def prior(self, rows: int) -> Gaussian:
        """N(0, 1) for each row."""
        zeros_BZ = torch.zeros(rows, self.slope_DZ.shape[1], dtype=torch.float64)
        return Gaussian(zeros_BZ, zeros_BZ)

    def log_joint(self, x_BD: Tensor) -> LogJoint:
        """Log p(x, z) of chains."""

        def of(z_NZ: Tensor, row_N: Tensor) -> Tensor:
            mean_ND = z_NZ @ self.slope_DZ.T + self.centre_D
            likelihood = Gaussian(mean_ND, torch.full_like(mean_ND, math.log(self.sigma)))
            zeros_NZ = torch.zeros_like(z_NZ)
            return likelihood.nats(x_BD[row_N]) + Gaussian(zeros_NZ, zeros_NZ).nats(z_NZ)

        return of
