"""Priors of latent vectors, with exact log densities and draws.

    N(0, 1)                                      or            sum_k w_k N(m_k, diag(s_k)^2), trained

Letters: B and N rows, Z latents, K components.

References:
    VAE with a VampPrior (a trained mixture of Gaussians is its baseline MoG), Tomczak and Welling 2018,
    https://arxiv.org/abs/1705.07120
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from genmod.distributions.gaussian import Gaussian, standard_normal
from genmod.rng import Rng


class Prior(nn.Module, ABC):
    """The prior p(z) of a model with latent variables."""

    @abstractmethod
    def draw(self, rng: Rng, latents: int, dtype: torch.dtype, temperature: float = 1.0) -> Tensor:
        """Draw z, (B, Z), one per row of ``rng``.

        Args:
            rng: B rows.
            latents: Z.
            dtype: of the draws.
            temperature: factor on the standard deviation of each Gaussian; 1 draws from p(z).
        """

    @abstractmethod
    def nats(self, z_NZ: Tensor) -> Tensor:
        """Log density of each row, (N,) in nats, in the dtype of ``z_NZ``."""

    @abstractmethod
    def kl_nats(self, q: Gaussian, z_BZ: Tensor) -> Tensor:
        """KL(q || p) in nats: (B, Z), exact for each latent; or (B, 1), an unbiased estimate.

        Args:
            q: posteriors of B rows.
            z_BZ: draws from q, for the estimate.
        """

    @abstractmethod
    def moments(self, like_BZ: Tensor) -> Gaussian:
        """The Gaussian with this prior's mean and variance, (1, Z), in the dtype of ``like_BZ``."""


class StandardNormalPrior(Prior):
    """The standard normal prior N(0, 1)."""

    def draw(self, rng: Rng, latents: int, dtype: torch.dtype, temperature: float = 1.0) -> Tensor:
        """Draw z = temperature * eps, (B, Z)."""
        return temperature * rng.normal(latents, dtype=dtype)

    def nats(self, z_NZ: Tensor) -> Tensor:
        """Log density of N(0, 1), (N,) in nats."""
        return standard_normal(z_NZ).nats(z_NZ)

    def kl_nats(self, q: Gaussian, z_BZ: Tensor) -> Tensor:
        """KL(q || N(0, 1)) of each latent in closed form, (B, Z)."""
        return q.kl_nats(standard_normal(z_BZ))

    def moments(self, like_BZ: Tensor) -> Gaussian:
        """N(0, 1) itself, (1, Z)."""
        return standard_normal(like_BZ[:1])


class MixturePrior(Prior):
    """A trained mixture of K Gaussians with diagonal covariance."""

    def __init__(self, components: int, latents: int) -> None:
        """K components with equal weights, standard deviation 1, and means drawn from N(0, 1).

        Args:
            components: K.
            latents: Z.
        """
        super().__init__()
        self.mean_KZ = nn.Parameter(torch.randn(components, latents))
        self.log_std_KZ = nn.Parameter(torch.zeros(components, latents))
        self.logit_K = nn.Parameter(torch.zeros(components))

    def draw(self, rng: Rng, latents: int, dtype: torch.dtype, temperature: float = 1.0) -> Tensor:
        """Draw a component by its weight, then z from it, (B, Z)."""
        cumulative_K = self.logit_K.double().softmax(0).cumsum(0)[:-1]
        u_B = rng.fold("component").uniform(1, dtype=torch.float64)[:, 0]
        component_B = torch.bucketize(u_B, cumulative_K, right=True)
        mean_BZ, std_BZ = self.mean_KZ[component_B], self.log_std_KZ[component_B].exp()
        eps_BZ = rng.normal(latents, dtype=dtype)
        return mean_BZ.to(dtype) + temperature * std_BZ.to(dtype) * eps_BZ

    def tensors(self) -> dict[str, Tensor]:
        """Weights (K,), means (K, Z) and standard deviations (K, Z) of the components."""
        return {
            "weight_K": self.logit_K.detach().softmax(0),
            "mean_KZ": self.mean_KZ.detach(),
            "std_KZ": self.log_std_KZ.detach().exp(),
        }

    def nats(self, z_NZ: Tensor) -> Tensor:
        """Log density, (N,) in nats; two matrix products avoid a tensor of shape (N, K, Z)."""
        mean_KZ, log_std_KZ = self.mean_KZ.to(z_NZ.dtype), self.log_std_KZ.to(z_NZ.dtype)
        # ((z - m) / s)^2 = z^2 p - 2 z m p + m^2 p, with the precision p = 1 / s^2.
        precision_KZ = (-2 * log_std_KZ).exp()
        weighted_mean_KZ = mean_KZ * precision_KZ
        log_weight_K = self.logit_K.to(z_NZ.dtype).log_softmax(0)
        constant_K = (
            log_weight_K
            - log_std_KZ.sum(1)
            - 0.5 * (mean_KZ * weighted_mean_KZ).sum(1)
            - 0.5 * math.log(2 * math.pi) * z_NZ.shape[1]
        )
        square_NK = torch.addmm(constant_K, z_NZ.square(), precision_KZ.T, alpha=-0.5)
        return torch.addmm(square_NK, z_NZ, weighted_mean_KZ.T).logsumexp(1)

    def kl_nats(self, q: Gaussian, z_BZ: Tensor) -> Tensor:
        """Estimate of KL(q || p), (B, 1): the entropy of q is exact, log p is evaluated at the draws."""
        negentropy_B = -(q.log_std_BZ + 0.5 * (1 + math.log(2 * math.pi))).sum(1)
        return (negentropy_B - self.nats(z_BZ))[:, None]

    def moments(self, like_BZ: Tensor) -> Gaussian:
        """The Gaussian with the mean and variance of the mixture, (1, Z)."""
        weight_1K = self.logit_K.softmax(0)[None].to(like_BZ.dtype)
        mean_KZ, log_std_KZ = self.mean_KZ.to(like_BZ.dtype), self.log_std_KZ.to(like_BZ.dtype)
        mean_1Z = weight_1K @ mean_KZ
        variance_1Z = weight_1K @ ((2 * log_std_KZ).exp() + (mean_KZ - mean_1Z).square())
        return Gaussian(mean_1Z, 0.5 * variance_1Z.log())
