"""Annealed importance sampling with Hamiltonian moves: bounds on log p(x) from both sides.

    pi_b(z)  proportional to  q(z)^(1 - b) p(x, z)^b,      0 = b_0 < b_1 < ... < b_T = 1

Forward chains start at z ~ q and give weights w = prod_t (p(x, z_t-1) / q(z_t-1))^(b_t - b_t-1) with mean
p(x): log of their mean is a stochastic lower bound. The same chains run backwards from an exact sample of
p(z | x) give weights 1/w with mean 1/p(x): a stochastic upper bound. An exact sample is had of simulated
data alone (draw z, then x); the distance of the two bounds there is the gap of bidirectional Monte Carlo.

Weights have these means only if the moves do not learn from the chains that they move. So step sizes are
found by pilot chains with randomness of their own, one curve over b for each row, and are fixed thereafter,
forward and backward. q is a Gaussian of its own for each row: the prior, or an encoder's q(z | x).
Letters: B rows, K chains, T temperatures, P pilot temperatures, Z latents, N = chains of one call.

References:
    Annealed importance sampling, Neal 2001, https://arxiv.org/abs/physics/9803008
    MCMC using Hamiltonian dynamics (sec. 5.4.4: scale and acceptance), Neal 2011,
    https://arxiv.org/abs/1206.1901
    On the quantitative analysis of decoder-based generative models (sigmoid schedule, sec. 3), Wu et al.
    2017, https://arxiv.org/abs/1611.04273
    Sandwiching the marginal likelihood using bidirectional Monte Carlo, Grosse et al. 2015,
    https://arxiv.org/abs/1511.02543
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from genmod.config import Config
from genmod.likelihood import hmc, iwae
from genmod.likelihood.hmc import Target
from genmod.rng import Rng

ACCEPTANCE = 0.8
"""What the pilot steers to. 0.65 is best for chains at rest; annealed ones that are left behind by a run of
refusals cost more: on the linear bench the variance of log weights is a third less at 0.8."""

_ADAPTATION_RATE = 1.0
"""Change of the pilot's log step size after a temperature, for an acceptance of 1 too much."""

_MAX_CHAINS = 1024
"""Chain c of a row is addressed by index * _MAX_CHAINS + c: more chains keep those before."""


class AISOptions(Config):
    """How much is spent on a row: about chains x temperatures x leapfrog gradients of the decoder."""

    temperatures: int = Field(default=1000, ge=2)
    """T, from q to the posterior. The bounds close with it; published values use 1,000 to 10,000."""
    radius: float = Field(default=8.0, gt=0)
    """Of the sigmoid schedule: b_1 is about exp(-2 radius). Wu et al. use 4; sharp posteriors (many pixels,
    a small sigma) want more."""
    chains: int = Field(default=16, ge=2, le=_MAX_CHAINS)
    """K, whose weights are averaged."""
    leapfrog: int = Field(default=5, ge=1)
    """Steps of one move, each a gradient of the decoder."""
    pilot_temperatures: int = Field(default=100, ge=2)
    """P, of the chains that find the step sizes."""
    pilot_chains: int = Field(default=4, ge=1, le=_MAX_CHAINS)
    """Of each row."""
    chunk: int = Field(default=128, ge=1)
    """Chains that the decoder sees together: memory, not the result."""

    @classmethod
    def tiny(cls) -> Self:
        """Milliseconds, for contract tests."""
        return cls(temperatures=8, chains=2, leapfrog=2, pilot_temperatures=6, pilot_chains=2)

    def moves(self) -> int:
        """Moves of chains for a row, pilots' and all; each is ``leapfrog`` gradients of the decoder."""
        return self.chains * self.temperatures + self.pilot_chains * self.pilot_temperatures

    def budget(self) -> dict[str, int | float | str]:
        """All of it, as a likelihood's label says it."""
        return self.model_dump(exclude={"chunk"})


def schedule(temperatures: int, radius: float) -> list[float]:
    """b_0 = 0 .. b_T = 1: a sigmoid over [-radius, radius], fine at both ends (sec. 3, Wu et al. 2017).

    b_t = (s(radius (2 t / T - 1)) - s(-radius)) / (s(radius) - s(-radius)), s(x) = 1 / (1 + exp(-x)).
    """

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    low, high = sigmoid(-radius), sigmoid(radius)
    inner = [
        (sigmoid(radius * (2 * t / temperatures - 1)) - low) / (high - low)
        for t in range(1, temperatures)
    ]
    return [0.0, *inner, 1.0]


def _per_row(rng: Rng, chains: int) -> Rng:
    """Chains 0 .. chains - 1 of every row, those of a row adjacent."""
    many = rng.repeat(_MAX_CHAINS)
    first = torch.arange(len(rng), device=many.index_B.device)[:, None] * _MAX_CHAINS
    which = torch.arange(chains, device=many.index_B.device)
    return many.rows((first + which).reshape(-1))


def find_step_sizes(target: Target, rng: Rng, options: AISOptions) -> Tensor:
    """Log step sizes for each row at the pilot's temperatures, (B, P) float64.

    All pilot chains of a row share a step size, which follows their mean acceptance.
    """
    rows, dims, count = target.rows(), target.latent_dims(), options.pilot_chains
    times = schedule(options.pilot_temperatures, options.radius)[1:]
    rng_N = _per_row(rng.fold("ais/pilot"), count)
    device = rng_N.index_B.device
    parts: list[Tensor] = []
    per_call = max(1, options.chunk // count)
    for first in range(0, rows, per_call):
        inside = torch.arange(first, min(first + per_call, rows), device=device)
        row_N = inside.repeat_interleave(count)
        mine = rng_N.rows(slice(first * count, first * count + len(row_N)))
        chains = hmc.start(target, mine, row_N)
        # Right for N(0, 1) in so many dimensions (sec. 5.4.4, Neal 2011), where all chains begin.
        log_step_B = torch.full((rows,), -0.25 * math.log(dims), dtype=torch.float64, device=device)
        curve: list[Tensor] = []
        for number, b in enumerate(times):
            chains, probability_N = hmc.move(
                target,
                chains,
                mine.at(number),
                b=b,
                step_B=log_step_B.exp(),
                leapfrog=options.leapfrog,
            )
            curve.append(log_step_B[inside])
            surplus_B = probability_N.view(-1, count).mean(1) - ACCEPTANCE
            log_step_B = log_step_B.index_add(0, inside, _ADAPTATION_RATE * surplus_B)
        parts.append(torch.stack(curve, 1))
    return torch.cat(parts)


def _step_at(log_step_BP: Tensor, part: float) -> Tensor:
    """Step size of each row after a part of the way from 0 to 1, (B,): the pilot's, interpolated."""
    last = log_step_BP.shape[1] - 1
    at = part * last
    low = min(int(at), last - 1)
    return torch.lerp(log_step_BP[:, low], log_step_BP[:, low + 1], at - low).exp()


def annealed_log_weights(
    target: Target,
    rng: Rng,
    options: AISOptions,
    log_step_BP: Tensor,
    exact_BZ: Tensor | None = None,
) -> Tensor:
    """Log weights of all chains, (K, B) float64.

    Args:
        target: B rows.
        rng: B rows.
        options: what is spent.
        log_step_BP: from :func:`find_step_sizes`.
        exact_BZ: None for forward chains. Exact samples of p(z | x) for backward ones; what is returned are
            then logs of w as well, so that 1/w has the mean 1/p(x).
    """
    rows, count = target.rows(), options.chains
    b = schedule(options.temperatures, options.radius)
    purpose = "ais/forward" if exact_BZ is None else "ais/backward"
    rng_N = _per_row(rng.fold(purpose), count)
    every_N = torch.arange(rows, device=rng_N.index_B.device).repeat_interleave(count)
    parts: list[Tensor] = []
    for first in range(0, rows * count, options.chunk):
        some = slice(first, first + options.chunk)
        row_N, mine = every_N[some], rng_N.rows(some)
        if exact_BZ is None:
            chains, order = hmc.start(target, mine, row_N), range(1, options.temperatures + 1)
        else:
            u_NZ = target.coordinates(exact_BZ[row_N], row_N)
            chains, order = hmc.at(target, u_NZ, row_N), range(options.temperatures, 0, -1)
        total_N = torch.zeros_like(chains.ratio_N)
        for t in order:
            total_N = total_N + (b[t] - b[t - 1]) * chains.ratio_N
            stay = t if exact_BZ is None else t - 1  # the temperature of the move that follows
            if 0 < stay < options.temperatures:
                step_B = _step_at(log_step_BP, (stay - 1) / (options.temperatures - 1))
                chains, _ = hmc.move(
                    target,
                    chains,
                    mine.at(stay),
                    b=b[stay],
                    step_B=step_B,
                    leapfrog=options.leapfrog,
                )
        parts.append(total_N)
    return torch.cat(parts).view(rows, count).T


def lower_bound(target: Target, rng: Rng, options: AISOptions) -> tuple[Tensor, Tensor]:
    """A stochastic lower bound on log p(x) of each row: (B,) nats and (B,) standard error."""
    log_step_BP = find_step_sizes(target, rng, options)
    return iwae.iwae_bound(annealed_log_weights(target, rng, options, log_step_BP), options.chains)


@dataclass(frozen=True)
class Sandwich:
    """Both bounds of simulated rows."""

    lower_B: Tensor
    upper_B: Tensor
    lower_stderr_B: Tensor
    upper_stderr_B: Tensor

    @property
    def gap_B(self) -> Tensor:
        """Upper less lower bound: nats; at least 0 on average."""
        return self.upper_B - self.lower_B


def sandwich(target: Target, exact_BZ: Tensor, rng: Rng, options: AISOptions) -> Sandwich:
    """Bounds from both sides of simulated rows, by chains alike but for their direction.

    Args:
        target: of rows x that were drawn from p(x | z).
        exact_BZ: the z that they were drawn from.
        rng: B rows.
        options: what is spent on each direction.
    """
    log_step_BP = find_step_sizes(target, rng, options)
    forward_KB = annealed_log_weights(target, rng, options, log_step_BP)
    backward_KB = annealed_log_weights(target, rng, options, log_step_BP, exact_BZ)
    lower_B, lower_stderr_B = iwae.iwae_bound(forward_KB, options.chains)
    negative_B, upper_stderr_B = iwae.iwae_bound(-backward_KB, options.chains)
    return Sandwich(lower_B, -negative_B, lower_stderr_B, upper_stderr_B)
