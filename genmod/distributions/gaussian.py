"""Gaussians with diagonal covariance over latent vectors. Letters: B rows, Z latent dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from genmod.rng import Rng


@dataclass(frozen=True)
class Gaussian:
    """N(mean, diag(exp(log_std))^2), one for each row."""

    mean_BZ: Tensor
    log_std_BZ: Tensor

    def draw(self, rng: Rng, temperature: float = 1.0) -> Tensor:
        """(B, Z): mean + temperature * std * eps, eps addressed by ``rng``'s rows."""
        eps_BZ = rng.normal(self.mean_BZ.shape[1], dtype=self.mean_BZ.dtype)
        return self.mean_BZ + temperature * self.log_std_BZ.exp() * eps_BZ

    def nats(self, z_BZ: Tensor) -> Tensor:
        """Log density, summed over Z, (B,) in nats."""
        eps_BZ = (z_BZ - self.mean_BZ) * (-self.log_std_BZ).exp()
        each_BZ = -0.5 * (eps_BZ.square() + math.log(2 * math.pi)) - self.log_std_BZ
        return each_BZ.sum(1)

    def kl_nats(self, other: Gaussian) -> Tensor:
        """KL(self || other) of each dimension, (B, Z) in nats, at least 0.

        With ``other`` = N(0, 1): -(1 + log s^2 - m^2 - s^2) / 2 (App. B, Kingma and Welling 2014).
        """
        log_ratio_BZ = self.log_std_BZ - other.log_std_BZ
        shift_BZ = (self.mean_BZ - other.mean_BZ) * (-other.log_std_BZ).exp()
        return 0.5 * (torch.expm1(2 * log_ratio_BZ) + shift_BZ.square()) - log_ratio_BZ

    def draw_with_conditionals(self, rng: Rng) -> tuple[Tensor, Gaussian]:
        """A draw, and itself."""
        return self.draw(rng), self

    def conditional(self, z_BZ: Tensor) -> Gaussian:
        """Itself: its dimensions do not depend on one another."""
        del z_BZ
        return self

    def gaussian_approximation(self) -> Gaussian:
        """Itself, for chains to start from."""
        return self

    def rows(self, which_N: Tensor) -> Gaussian:
        """Some of the rows, which may be repeated."""
        return Gaussian(self.mean_BZ[which_N], self.log_std_BZ[which_N])

    def double(self) -> Gaussian:
        """In float64."""
        return Gaussian(self.mean_BZ.double(), self.log_std_BZ.double())


class Posterior(Protocol):
    """q(z | x) of B rows: a Gaussian, or Gaussians one after the other."""

    def draw(self, rng: Rng) -> Tensor:
        """(B, Z), addressed by ``rng``'s rows."""
        ...

    def draw_with_conditionals(self, rng: Rng) -> tuple[Tensor, Gaussian]:
        """The same draws, and each latent's Gaussian given those before it."""
        ...

    def conditional(self, z_BZ: Tensor) -> Gaussian:
        """Each latent's Gaussian given those before it in ``z_BZ``."""
        ...

    def gaussian_approximation(self) -> Gaussian:
        """A Gaussian near it, from which chains may start."""
        ...

    def nats(self, z_BZ: Tensor) -> Tensor:
        """Log density, (B,) in nats."""
        ...

    def rows(self, which_N: Tensor) -> Posterior:
        """Some of the rows, which may be repeated."""
        ...

    def double(self) -> Posterior:
        """In float64."""
        ...


def standard_normal(like_BZ: Tensor) -> Gaussian:
    """N(0, 1) in the shape of a tensor."""
    zeros_BZ = torch.zeros_like(like_BZ)
    return Gaussian(zeros_BZ, zeros_BZ)


def bounded_posterior(raw_BY: Tensor) -> Gaussian:
    """A posterior from what a net says, in at least float32 whatever the nets compute in.

    The standard deviation is 2 sigmoid(raw): the prior's at 0, and never above twice that, since a posterior
    wider than the prior only costs.
    """
    mean_BZ, raw_BZ = at_least_float32(raw_BY).chunk(2, dim=1)
    return Gaussian(mean_BZ, F.logsigmoid(raw_BZ) + math.log(2))


def free_bits(kl_BZ: Tensor, nats: float, group: int) -> Tensor:
    """What latents cost if ``group`` adjacent ones cost no less than ``nats`` together, (B,).

    Of each row (sec. 2.1.1, Kingma et al. 2016, https://arxiv.org/abs/1606.04934, without their mean over
    the batch, which would make the loss depend on how the batch is split).
    """
    return kl_BZ.unflatten(1, (-1, group)).sum(2).clamp(min=nats).sum(1)


def at_least_float32(raw: Tensor) -> Tensor:
    """The same numbers, not in half precision."""
    return raw if raw.dtype == torch.float64 else raw.float()
