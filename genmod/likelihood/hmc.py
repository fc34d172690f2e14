"""Hamiltonian moves of chains over the latents of many rows, in the coordinates of a Gaussian for each row.

    pi_b(z)  proportional to  q(z)^(1 - b) p(x, z)^b,      u = (z - mean of q) / std of q

A move leaves pi_b unchanged: leapfrog steps of the dynamics, then Metropolis. Letters: B rows, Z latents,
N chains.

References:
    MCMC using Hamiltonian dynamics (Eqs. 5.18-5.20), Neal 2011, https://arxiv.org/abs/1206.1901
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genmod.distributions.gaussian import Gaussian
from genmod.likelihood.iwae import LogJoint
from genmod.rng import Rng

_JITTER = 0.2
"""A move's step size is uniform within so much of what is asked for, so that no orbit closes for ever."""


@dataclass(frozen=True)
class Target:
    """B rows' distributions of latents: where chains start and where they are annealed to."""

    start: Gaussian
    """q(z), one for each row."""
    log_joint: LogJoint
    """(z_NZ, row_N) -> log p(x[row], z), (N,) in nats; differentiable by z."""

    def rows(self) -> int:
        """B."""
        return self.start.mean_BZ.shape[0]

    def latent_dims(self) -> int:
        """Z."""
        return self.start.mean_BZ.shape[1]

    def latents(self, u_NZ: Tensor, row_N: Tensor) -> Tensor:
        """The chains' z, in the dtype of q."""
        mean_NZ, log_std_NZ = self.start.mean_BZ[row_N], self.start.log_std_BZ[row_N]
        return (mean_NZ.double() + log_std_NZ.double().exp() * u_NZ).to(mean_NZ.dtype)

    def coordinates(self, z_NZ: Tensor, row_N: Tensor) -> Tensor:
        """The u of latents, float64."""
        start = self.start.rows(row_N).double()
        return (z_NZ.double() - start.mean_BZ) * (-start.log_std_BZ).exp()

    def ratio(self, u_NZ: Tensor, row_N: Tensor) -> tuple[Tensor, Tensor]:
        """Of every chain log p(x, z) - log q(z), (N,) float64, and its gradient by u."""
        with torch.enable_grad():
            u_NZ = u_NZ.detach().requires_grad_()
            log_std_NZ = self.start.log_std_BZ[row_N].double()
            each_NZ = 0.5 * (u_NZ.square() + math.log(2 * math.pi)) + log_std_NZ
            log_q_N = -each_NZ.sum(1)
            ratio_N = self.log_joint(self.latents(u_NZ, row_N), row_N).double() - log_q_N
            (slope_NZ,) = torch.autograd.grad(ratio_N.sum(), u_NZ)
        return ratio_N.detach(), slope_NZ


@dataclass(frozen=True)
class Chains:
    """N chains: which row each is of, and where it is."""

    row_N: Tensor
    u_NZ: Tensor
    ratio_N: Tensor
    slope_NZ: Tensor


def start(target: Target, rng_N: Rng, row_N: Tensor) -> Chains:
    """Chains at draws from q."""
    u_NZ = rng_N.fold("start").normal(target.latent_dims(), dtype=torch.float64)
    return at(target, u_NZ, row_N)


def at(target: Target, u_NZ: Tensor, row_N: Tensor) -> Chains:
    """Chains at given places."""
    return Chains(row_N, u_NZ, *target.ratio(u_NZ, row_N))


def move(
    target: Target, chains: Chains, rng_N: Rng, *, b: float, step_B: Tensor, leapfrog: int
) -> tuple[Chains, Tensor]:
    """One Hamiltonian move of each chain.

    Args:
        target: B rows.
        chains: N of them.
        rng_N: a row for each chain, at a step of its own for each move.
        b: of pi_b, which the move leaves unchanged.
        step_B: step size of each row's chains.
        leapfrog: steps, each a gradient of the decoder.

    Returns:
        The chains after it, and each one's probability of acceptance, (N,).
    """
    jitter_N, accept_N = rng_N.fold("metropolis").uniform(2, dtype=torch.float64).unbind(1)
    step_N1 = (step_B[chains.row_N] * (1 + _JITTER * (2 * jitter_N - 1)))[:, None]
    u_NZ, ratio_N, slope_NZ = chains.u_NZ, chains.ratio_N, chains.slope_NZ
    momentum_NZ = rng_N.fold("momentum").normal(u_NZ.shape[1], dtype=torch.float64)

    def energy(u_NZ: Tensor, ratio_N: Tensor, momentum_NZ: Tensor) -> Tensor:
        return 0.5 * (u_NZ.square() + momentum_NZ.square()).sum(1) - b * ratio_N

    before_N = energy(u_NZ, ratio_N, momentum_NZ)
    momentum_NZ = momentum_NZ - 0.5 * step_N1 * (u_NZ - b * slope_NZ)
    for left in reversed(range(leapfrog)):
        u_NZ = u_NZ + step_N1 * momentum_NZ
        ratio_N, slope_NZ = target.ratio(u_NZ, chains.row_N)
        half = 1.0 if left else 0.5
        momentum_NZ = momentum_NZ - half * step_N1 * (u_NZ - b * slope_NZ)
    gain_N = before_N - energy(u_NZ, ratio_N, momentum_NZ)
    # A move that went astray has no energy (NaN): it is refused like one of infinite energy.
    probability_N = gain_N.nan_to_num(nan=-math.inf).clamp(max=0.0).exp()
    taken_N = accept_N < probability_N
    taken_N1 = taken_N[:, None]
    moved = Chains(
        chains.row_N,
        torch.where(taken_N1, u_NZ, chains.u_NZ),
        torch.where(taken_N, ratio_N, chains.ratio_N),
        torch.where(taken_N1, slope_NZ, chains.slope_NZ),
    )
    return moved, probability_N
