"""Distributions on R^D with densities, denoisers and posteriors in closed form, in float64.

Estimators of log p are tested against them. Letters: B rows, D dimensions, Z latents, M components, N rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from genmod import units
from genmod.manifest import ImageSpec
from genmod.rng import Rng, rng_for


def _normal_nats(x_BD: Tensor, mean_D: Tensor, covariance_DD: Tensor) -> Tensor:
    normal = torch.distributions.MultivariateNormal(mean_D, covariance_DD)
    return normal.log_prob(x_BD)


@dataclass(frozen=True)
class LinearGaussian:
    """x = W z + mean + noise eps, with z and eps standard normal: x ~ N(mean, W W^T + noise^2 I)."""

    weight_DZ: Tensor
    mean_D: Tensor
    noise: float

    @classmethod
    def example(cls, dims: int, latents: int, noise: float, seed: int = 0) -> Self:
        """An instance with random W, whose entries have variance 1 / Z, and a random mean."""
        numbers = rng_for(seed, "selftest/linear", range(dims)).normal(
            latents + 1, dtype=torch.float64
        )
        return cls(numbers[:, :latents] / math.sqrt(latents), numbers[:, latents], noise)

    @property
    def covariance_DD(self) -> Tensor:
        """Covariance matrix of x, (D, D)."""
        eye_DD = torch.eye(len(self.mean_D), dtype=torch.float64)
        return self.weight_DZ @ self.weight_DZ.T + self.noise**2 * eye_DD

    @property
    def std_D(self) -> Tensor:
        """Standard deviation of each dimension of x, (D,)."""
        return self.covariance_DD.diagonal().sqrt()

    def draw(self, rng: Rng) -> Tensor:
        """Draw x, (B, D), one per row of ``rng``."""
        return self.draw_joint(rng)[1]

    def draw_joint(self, rng: Rng) -> tuple[Tensor, Tensor]:
        """Draw latents z (B, Z) and x (B, D); z is then an exact sample of p(z | x)."""
        dims, latents = self.weight_DZ.shape
        z_BZ = rng.fold("latent").normal(latents, dtype=torch.float64)
        eps_BD = rng.fold("noise").normal(dims, dtype=torch.float64)
        return z_BZ, z_BZ @ self.weight_DZ.T + self.mean_D + self.noise * eps_BD

    def nats(self, x_BD: Tensor, sigma: float = 0.0) -> Tensor:
        """Log density of x + ``sigma`` eps, eps standard normal, at ``x_BD``: (B,) in nats."""
        eye_DD = torch.eye(len(self.mean_D), dtype=torch.float64)
        return _normal_nats(x_BD, self.mean_D, self.covariance_DD + sigma**2 * eye_DD)

    def log_joint(self, x_ND: Tensor, z_NZ: Tensor) -> Tensor:
        """Log p(x, z) = log p(x | z) + log p(z), (N,) in nats."""
        eps_ND = (x_ND - self.mean_D - z_NZ @ self.weight_DZ.T) / self.noise
        count = eps_ND.shape[1] + z_NZ.shape[1]
        squares_N = eps_ND.square().sum(1) + z_NZ.square().sum(1)
        volume = eps_ND.shape[1] * math.log(self.noise) + 0.5 * count * math.log(2 * math.pi)
        return -0.5 * squares_N - volume

    def posterior(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, Z) and covariance (Z, Z) of p(z | x)."""
        latents = self.weight_DZ.shape[1]
        precision_ZZ = torch.eye(latents, dtype=torch.float64)
        precision_ZZ = precision_ZZ + self.weight_DZ.T @ self.weight_DZ / self.noise**2
        covariance_ZZ = torch.linalg.inv(precision_ZZ)
        mean_BZ = (x_BD - self.mean_D) @ self.weight_DZ @ covariance_ZZ / self.noise**2
        return mean_BZ, covariance_ZZ

    def denoise(self, x_BD: Tensor, sigma: Tensor) -> Tensor:
        """E[clean | x], (B, D), for noise of std ``sigma``, (B,) or a scalar."""
        values_D, vectors_DD = torch.linalg.eigh(self.covariance_DD)
        sigma_B1 = sigma.reshape(-1, 1)
        shrunk_BD = (x_BD - self.mean_D) @ vectors_DD * (values_D / (values_D + sigma_B1**2))
        return self.mean_D + shrunk_BD @ vectors_DD.T


@dataclass(frozen=True)
class IsotropicMixture:
    """A mixture of N(mean_m, std^2 I) with equal weights."""

    mean_MD: Tensor
    std: float

    @classmethod
    def ring(cls, components: int, radius: float, std: float) -> Self:
        """Components in 2 dimensions whose means are evenly spaced on a circle."""
        angle_M = torch.arange(components, dtype=torch.float64) * (2 * math.pi / components)
        return cls(radius * torch.stack((angle_M.cos(), angle_M.sin()), 1), std)

    @classmethod
    def scattered(
        cls, components: int, dims: int, spread: float, std: float, seed: int = 0
    ) -> Self:
        """Components whose means have coordinates uniform in [-spread, spread]."""
        rng = rng_for(seed, "selftest/mixture", range(components))
        return cls(spread * (2 * rng.uniform(dims, dtype=torch.float64) - 1), std)

    def draw(self, rng: Rng) -> Tensor:
        """Draw x, (B, D), one per row of ``rng``."""
        component_B = rng.fold("component").integers(len(self.mean_MD))
        eps_BD = rng.fold("noise").normal(self.mean_MD.shape[1], dtype=torch.float64)
        return self.mean_MD[component_B] + self.std * eps_BD

    def _log_terms(self, x_BD: Tensor, variance_B1: Tensor) -> Tensor:
        """Log weight plus log density of each component, (B, M)."""
        count, dims = self.mean_MD.shape
        squares_BM = (x_BD[:, None] - self.mean_MD).square().sum(2)
        volume_B1 = 0.5 * dims * (variance_B1 * (2 * math.pi)).log()
        return -0.5 * squares_BM / variance_B1 - volume_B1 - math.log(count)

    def nats(self, x_BD: Tensor, sigma: float = 0.0) -> Tensor:
        """Log density of x + ``sigma`` eps, eps standard normal, at ``x_BD``: (B,) in nats."""
        variance = torch.full((1, 1), self.std**2 + sigma**2, dtype=torch.float64)
        return self._log_terms(x_BD, variance).logsumexp(1)

    def denoise(self, x_BD: Tensor, sigma: Tensor) -> Tensor:
        """E[clean | x], (B, D), for noise of std ``sigma``, (B,) or a scalar: a mean over components."""
        sigma_B1 = sigma.reshape(-1, 1)
        variance_B1 = self.std**2 + sigma_B1**2
        share_BM = self._log_terms(x_BD, variance_B1).softmax(1)
        return (self.std**2 * x_BD + sigma_B1**2 * (share_BM @ self.mean_MD)) / variance_B1

    @property
    def mean_D(self) -> Tensor:
        """Mean of x, (D,)."""
        return self.mean_MD.mean(0)

    @property
    def std_D(self) -> Tensor:
        """Standard deviation of each dimension of x, (D,)."""
        return (self.mean_MD.var(0, correction=0) + self.std**2).sqrt()

    def bin_nats(self, pixels_BD: Tensor, levels: int) -> Tensor:
        """Log probability of pixels, (B,) in nats: of their bins in [-1, 1], the outermost open-ended.

        Args:
            pixels_BD: integers in 0 .. levels - 1.
            levels: number of bins.
        """
        low_BD, width = 2 * pixels_BD.double() / levels - 1, 2 / levels
        high_BD = low_BD + width
        low_BD = low_BD.masked_fill(pixels_BD == 0, -math.inf)
        high_BD = high_BD.masked_fill(pixels_BD == levels - 1, math.inf)
        below_BMD, above_BMD = (
            torch.special.ndtr((edge_BD[:, None] - self.mean_MD) / self.std)
            for edge_BD in (low_BD, high_BD)
        )
        log_mass_BM = (above_BMD - below_BMD).log().sum(2)
        return log_mass_BM.logsumexp(1) - math.log(len(self.mean_MD))


@dataclass(frozen=True)
class PointMasses:
    """A discrete distribution over M points, such as a data set of a few images."""

    point_MD: Tensor
    weight_M: Tensor

    @classmethod
    def images(cls, count: int, spec: ImageSpec, seed: int = 0) -> Self:
        """Images of random pixels in network units, with probabilities in proportion to 1, 2, ..., M."""
        rng = rng_for(seed, "selftest/atoms", range(count))
        pixels_MD = rng.integers(spec.levels, spec.dims) * (units.LEVELS - 1) // (spec.levels - 1)
        weight_M = 1.0 + torch.arange(count, dtype=torch.float64)
        return cls(units.to_network(pixels_MD, torch.float64), weight_M / weight_M.sum())

    def denoise(self, x_BD: Tensor, sigma: Tensor) -> Tensor:
        """E[clean | x], (B, D), for noise of std ``sigma``, (B,) or a scalar."""
        squares_BM = (x_BD[:, None] - self.point_MD).square().sum(2)
        share_BM = self.weight_M.log() - 0.5 * squares_BM / sigma.reshape(-1, 1) ** 2
        return share_BM.softmax(1) @ self.point_MD
