"""Priors of latent vectors, each with an exact density and draws of it.

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
    """p(z)."""

    @abstractmethod
    def draw(self, rng: Rng, latents: int, dtype: torch.dtype, temperature: float = 1.0) -> Tensor:
        """(B, Z), addressed by ``rng``'s rows.

        ``temperature`` is a factor on the standard deviation of each Gaussian.
        """

    @abstractmethod
    def nats(self, z_NZ: Tensor) -> Tensor:
        """Log density in the type of ``z_NZ``, (N,) in nats."""

    @abstractmethod
    def kl_nats(self, q: Gaussian, z_BZ: Tensor) -> Tensor:
        """KL(q || p), (B, Z) for each latent or (B, 1), in nats; ``z_BZ`` are draws of q.

        (B, 1) is an estimate without bias, by these draws.
        """

    @abstractmethod
    def moments(self, like_BZ: Tensor) -> Gaussian:
        """The Gaussian with the mean and the variance of each latent, (1, Z)."""


class StandardNormalPrior(Prior):
    """N(0, 1)."""

    def draw(self, rng: Rng, latents: int, dtype: torch.dtype, temperature: float = 1.0) -> Tensor:
        """StandardNormalPrior normals."""
        return temperature * rng.normal(latents, dtype=dtype)

    def nats(self, z_NZ: Tensor) -> Tensor:
        """Of N(0, 1)."""
        return standard_normal(z_NZ).nats(z_NZ)

    def kl_nats(self, q: Gaussian, z_BZ: Tensor) -> Tensor:
        """Of each latent, in closed form."""
        return q.kl_nats(standard_normal(z_BZ))

    def moments(self, like_BZ: Tensor) -> Gaussian:
        """Itself."""
        return standard_normal(like_BZ[:1])


class MixturePrior(Prior):
    """K Gaussians of diagonal covariance, with weights."""

    def __init__(self, components: int, latents: int) -> None:
        """Components of equal weight that lie as draws of N(0, 1) do, none of them wider than that."""
        super().__init__()
        self.mean_KZ = nn.Parameter(torch.randn(components, latents))
        self.log_std_KZ = nn.Parameter(torch.zeros(components, latents))
        self.logit_K = nn.Parameter(torch.zeros(components))

    def draw(self, rng: Rng, latents: int, dtype: torch.dtype, temperature: float = 1.0) -> Tensor:
        """A component by its weight, then a draw of it."""
        upto_K = self.logit_K.double().softmax(0).cumsum(0)[:-1]
        u_B = rng.fold("component").uniform(1, dtype=torch.float64)[:, 0]
        which_B = torch.bucketize(u_B, upto_K, right=True)
        mean_BZ, std_BZ = self.mean_KZ[which_B], self.log_std_KZ[which_B].exp()
        eps_BZ = rng.normal(latents, dtype=dtype)
        return mean_BZ.to(dtype) + temperature * std_BZ.to(dtype) * eps_BZ

    def nats(self, z_NZ: Tensor) -> Tensor:
        """Squares of (z - m) / s as two matrix products, so that no (N, K, Z) is ever made."""
        mean_KZ, log_std_KZ = self.mean_KZ.to(z_NZ.dtype), self.log_std_KZ.to(z_NZ.dtype)
        precision_KZ = (-2 * log_std_KZ).exp()
        pull_KZ = mean_KZ * precision_KZ
        log_weight_K = self.logit_K.to(z_NZ.dtype).log_softmax(0)
        constant_K = (
            log_weight_K
            - log_std_KZ.sum(1)
            - 0.5 * (mean_KZ * pull_KZ).sum(1)
            - 0.5 * math.log(2 * math.pi) * z_NZ.shape[1]
        )
        square_NK = torch.addmm(constant_K, z_NZ.square(), precision_KZ.T, alpha=-0.5)
        return torch.addmm(square_NK, z_NZ, pull_KZ.T).logsumexp(1)

    def kl_nats(self, q: Gaussian, z_BZ: Tensor) -> Tensor:
        """(B, 1): log q's mean in closed form, log p at the draws."""
        negentropy_B = -(q.log_std_BZ + 0.5 * (1 + math.log(2 * math.pi))).sum(1)
        return (negentropy_B - self.nats(z_BZ))[:, None]

    def moments(self, like_BZ: Tensor) -> Gaussian:
        """By the weights: the mean of means, the mean of squares less its square."""
        weight_1K = self.logit_K.softmax(0)[None].to(like_BZ.dtype)
        mean_KZ, log_std_KZ = self.mean_KZ.to(like_BZ.dtype), self.log_std_KZ.to(like_BZ.dtype)
        mean_1Z = weight_1K @ mean_KZ
        variance_1Z = weight_1K @ ((2 * log_std_KZ).exp() + (mean_KZ - mean_1Z).square())
        return Gaussian(mean_1Z, 0.5 * variance_1Z.log())
