"""Hamiltonian Monte Carlo over latents: chains of many rows, in the coordinates of one Gaussian per row.

    pi_b(z)  proportional to  q(z)^(1 - b) p(x, z)^b,      u = (z - mean of q) / std of q

A move (leapfrog steps, then Metropolis acceptance) leaves pi_b invariant. Letters: B rows, Z latents,
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
"""Relative jitter of a move's step size, which prevents periodic orbits."""


@dataclass(frozen=True)
class Target:
    """Distributions over the latents of B rows: the start of annealing and its end."""

    start: Gaussian
    """q(z), one per row."""
    log_joint: LogJoint
    """(z_NZ, row_N) -> log p(x[row], z), (N,) in nats; differentiable in z."""

    def rows(self) -> int:
        """B, the number of rows."""
        return self.start.mean_BZ.shape[0]

    def latent_dims(self) -> int:
        """Z, the number of latents."""
        return self.start.mean_BZ.shape[1]

    def latents(self, u_NZ: Tensor, row_N: Tensor) -> Tensor:
        """Convert coordinates u of chains to latents z, (N, Z) in the dtype of q."""
        mean_NZ, log_std_NZ = self.start.mean_BZ[row_N], self.start.log_std_BZ[row_N]
        return (mean_NZ.double() + log_std_NZ.double().exp() * u_NZ).to(mean_NZ.dtype)

    def coordinates(self, z_NZ: Tensor, row_N: Tensor) -> Tensor:
        """Convert latents z of chains to coordinates u, (N, Z) float64."""
        start = self.start.rows(row_N).double()
        return (z_NZ.double() - start.mean_BZ) * (-start.log_std_BZ).exp()

    def ratio(self, u_NZ: Tensor, row_N: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(x, z) - log q(z) of each chain, (N,) float64, and its gradient in u, (N, Z)."""
        with torch.enable_grad():
            u_NZ = u_NZ.detach().requires_grad_()
            log_std_NZ = self.start.log_std_BZ[row_N].double()
            negative_log_q_NZ = 0.5 * (u_NZ.square() + math.log(2 * math.pi)) + log_std_NZ
            log_q_N = -negative_log_q_NZ.sum(1)
            ratio_N = self.log_joint(self.latents(u_NZ, row_N), row_N).double() - log_q_N
            (gradient_NZ,) = torch.autograd.grad(ratio_N.sum(), u_NZ)
        return ratio_N.detach(), gradient_NZ


@dataclass(frozen=True)
class Chains:
    """The state of N chains."""

    row_N: Tensor
    """Row of each chain, int64."""
    u_NZ: Tensor
    """Coordinates, float64."""
    ratio_N: Tensor
    """log p(x, z) - log q(z), in nats."""
    gradient_NZ: Tensor
    """Gradient of the ratio in u."""


def start_chains(target: Target, rng_N: Rng, row_N: Tensor) -> Chains:
    """Start chains at draws from q; chain n belongs to row ``row_N[n]``."""
    u_NZ = rng_N.fold("start").normal(target.latent_dims(), dtype=torch.float64)
    return chains_at(target, u_NZ, row_N)


def chains_at(target: Target, u_NZ: Tensor, row_N: Tensor) -> Chains:
    """Start chains at the coordinates ``u_NZ``; chain n belongs to row ``row_N[n]``."""
    return Chains(row_N, u_NZ, *target.ratio(u_NZ, row_N))


def move(
    target: Target, chains: Chains, rng_N: Rng, *, b: float, step_B: Tensor, leapfrog: int
) -> tuple[Chains, Tensor]:
    """Make one Hamiltonian move of each chain.

    Args:
        target: the distributions of B rows.
        chains: N chains.
        rng_N: one row per chain; use another step for each move.
        b: inverse temperature of pi_b, which the move leaves invariant.
        step_B: step size of the chains of each row.
        leapfrog: leapfrog steps; each takes a gradient of the decoder.

    Returns:
        The moved chains, and the acceptance probability of each, (N,).
    """
    jitter_N, accept_N = rng_N.fold("metropolis").uniform(2, dtype=torch.float64).unbind(1)
    step_N1 = (step_B[chains.row_N] * (1 + _JITTER * (2 * jitter_N - 1)))[:, None]
    u_NZ, ratio_N, gradient_NZ = chains.u_NZ, chains.ratio_N, chains.gradient_NZ
    momentum_NZ = rng_N.fold("momentum").normal(u_NZ.shape[1], dtype=torch.float64)

    def energy(u_NZ: Tensor, ratio_N: Tensor, momentum_NZ: Tensor) -> Tensor:
        return 0.5 * (u_NZ.square() + momentum_NZ.square()).sum(1) - b * ratio_N

    # Leapfrog: half a step of the momentum, then full steps of both in turn, half a step at the end.
    energy_N = energy(u_NZ, ratio_N, momentum_NZ)
    momentum_NZ = momentum_NZ - 0.5 * step_N1 * (u_NZ - b * gradient_NZ)
    for left in reversed(range(leapfrog)):
        u_NZ = u_NZ + step_N1 * momentum_NZ
        ratio_N, gradient_NZ = target.ratio(u_NZ, chains.row_N)
        half = 1.0 if left else 0.5
        momentum_NZ = momentum_NZ - half * step_N1 * (u_NZ - b * gradient_NZ)
    # Metropolis: a diverged move has the energy NaN and is rejected, as if its energy were infinite.
    decrease_N = energy_N - energy(u_NZ, ratio_N, momentum_NZ)
    probability_N = decrease_N.nan_to_num(nan=-math.inf).clamp(max=0.0).exp()
    accepted_N = accept_N < probability_N
    accepted_N1 = accepted_N[:, None]
    moved = Chains(
        chains.row_N,
        torch.where(accepted_N1, u_NZ, chains.u_NZ),
        torch.where(accepted_N, ratio_N, chains.ratio_N),
        torch.where(accepted_N1, gradient_NZ, chains.gradient_NZ),
    )
    return moved, probability_N
