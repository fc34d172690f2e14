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
    """B Gaussians N(mean, diag(exp(log_std))^2), one per row."""

    mean_BZ: Tensor
    log_std_BZ: Tensor

    def draw(self, rng: Rng, temperature: float = 1.0) -> Tensor:
        """Draw z = mean + temperature * std * eps, (B, Z), one per row of ``rng``."""
        eps_BZ = rng.normal(self.mean_BZ.shape[1], dtype=self.mean_BZ.dtype)
        return self.mean_BZ + temperature * self.log_std_BZ.exp() * eps_BZ

    def nats(self, z_BZ: Tensor) -> Tensor:
        """Log density of each row, (B,) in nats."""
        eps_BZ = (z_BZ - self.mean_BZ) * (-self.log_std_BZ).exp()
        each_BZ = -0.5 * (eps_BZ.square() + math.log(2 * math.pi)) - self.log_std_BZ
        return each_BZ.sum(1)

    def kl_nats(self, other: Gaussian) -> Tensor:
        """KL(self || other) of each dimension, (B, Z) in nats, at least 0.

        For ``other`` = N(0, 1) it is -(1 + log s^2 - m^2 - s^2) / 2 (App. B, Kingma and Welling 2014).
        """
        log_ratio_BZ = self.log_std_BZ - other.log_std_BZ
        shift_BZ = (self.mean_BZ - other.mean_BZ) * (-other.log_std_BZ).exp()
        return 0.5 * (torch.expm1(2 * log_ratio_BZ) + shift_BZ.square()) - log_ratio_BZ

    def draw_with_conditionals(self, rng: Rng) -> tuple[Tensor, Gaussian]:
        """Draw z, (B, Z), and return this distribution, whose dimensions are independent."""
        return self.draw(rng), self

    def conditional(self, z_BZ: Tensor) -> Gaussian:
        """This distribution, whatever ``z_BZ`` is, because its dimensions are independent."""
        del z_BZ
        return self

    def gaussian_approximation(self) -> Gaussian:
        """This distribution, which is already Gaussian."""
        return self

    def rows(self, which_N: Tensor) -> Gaussian:
        """The distributions of rows ``which_N``, which may repeat."""
        return Gaussian(self.mean_BZ[which_N], self.log_std_BZ[which_N])

    def double(self) -> Gaussian:
        """The same distributions with float64 parameters."""
        return Gaussian(self.mean_BZ.double(), self.log_std_BZ.double())


class Posterior(Protocol):
    """q(z | x) of B rows: a Gaussian, or a hierarchy of Gaussians, each group given those before it."""

    def draw(self, rng: Rng) -> Tensor:
        """Draw z, (B, Z), one per row of ``rng``."""
        ...

    def draw_with_conditionals(self, rng: Rng) -> tuple[Tensor, Gaussian]:
        """Draw z, (B, Z); also return q of each group given the drawn groups before it."""
        ...

    def conditional(self, z_BZ: Tensor) -> Gaussian:
        """Q of each group given the groups before it in ``z_BZ``."""
        ...

    def gaussian_approximation(self) -> Gaussian:
        """A Gaussian close to q, as the start of annealed chains."""
        ...

    def nats(self, z_BZ: Tensor) -> Tensor:
        """Log density of each row, (B,) in nats."""
        ...

    def rows(self, which_N: Tensor) -> Posterior:
        """The posteriors of rows ``which_N``, which may repeat."""
        ...

    def double(self) -> Posterior:
        """The same posterior with float64 parameters."""
        ...


def standard_normal(like_BZ: Tensor) -> Gaussian:
    """N(0, 1) with the shape, dtype and device of a tensor."""
    zeros_BZ = torch.zeros_like(like_BZ)
    return Gaussian(zeros_BZ, zeros_BZ)


def bounded_posterior(raw_BY: Tensor) -> Gaussian:
    """A Gaussian posterior from an encoder's output (B, 2 Z), in at least float32.

    The first half is the mean. The standard deviation is 2 sigmoid(raw): it is 1, the prior's, at raw = 0,
    and at most 2, because a posterior wider than the prior only increases the loss.
    """
    mean_BZ, raw_BZ = at_least_float32(raw_BY).chunk(2, dim=1)
    return Gaussian(mean_BZ, F.logsigmoid(raw_BZ) + math.log(2))


def free_bits(kl_BZ: Tensor, nats: float, group: int) -> Tensor:
    """Free bits: the KL of each row, where a group of latents counts at least ``nats``, (B,).

    Sec. 2.1.1, Kingma et al. 2016, https://arxiv.org/abs/1606.04934, without their mean over the batch, which
    would make the loss depend on how the batch is split.

    Args:
        kl_BZ: KL of each latent, in nats.
        nats: minimum per group.
        group: number of adjacent latents that form a group.

    >>> free_bits(torch.tensor([[0.1, 0.1, 2.0, 1.0]]), 0.5, 2)
    tensor([3.5000])
    """
    return kl_BZ.unflatten(1, (-1, group)).sum(2).clamp(min=nats).sum(1)


def at_least_float32(raw: Tensor) -> Tensor:
    """Convert half precision to float32; leave float32 and float64 as they are."""
    return raw if raw.dtype == torch.float64 else raw.float()
