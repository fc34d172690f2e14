"""Annealed importance sampling (AIS) with Hamiltonian moves: lower and upper bounds on log p(x).

    pi_b(z)  proportional to  q(z)^(1 - b) p(x, z)^b,      0 = b_0 < b_1 < ... < b_T = 1

Forward chains start at z ~ q. Their weights w = prod_t (p(x, z_t-1) / q(z_t-1))^(b_t - b_t-1) have the mean
p(x), so the log of their average is a stochastic lower bound. The same chains, run backwards from an exact
sample of p(z | x), have weights 1/w with mean 1/p(x), which gives a stochastic upper bound. Exact samples
exist only for simulated data (draw z, then x); the difference of both bounds there is the gap of
bidirectional Monte Carlo.

The weights have these means only if moves do not adapt to the chains that they move. So step sizes are tuned
on separate pilot chains, as a function of b for each row, and then fixed. q is one Gaussian per row: the
prior, or an encoder's q(z | x).
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

TARGET_ACCEPTANCE = 0.8
"""Target acceptance rate of the pilot. 0.65 is best for stationary chains. Annealed chains suffer more from
repeated rejections: on a linear generator the variance of log weights is a third lower at 0.8."""

_ADAPTATION_RATE = 1.0
"""Change of the pilot's log step size per temperature, per unit of excess acceptance."""

_MAX_CHAINS = 1024
"""Chain c of a row has the random index ``index * _MAX_CHAINS + c``, so adding chains keeps the others."""


class AISOptions(Config):
    """AIS options. The cost of a row is about chains x temperatures x leapfrog gradients of the decoder."""

    temperatures: int = Field(default=1000, ge=2, le=1_000_000)
    """T, temperatures from q to the posterior. More make the bounds tighter; published values use 1,000 to
    10,000."""
    radius: float = Field(default=8.0, ge=1e-3, le=100)
    """Radius of the sigmoid schedule: b_1 is about exp(-2 radius). Wu et al. use 4; sharp posteriors (many
    pixels, a small sigma) need more."""
    chains: int = Field(default=16, ge=2, le=_MAX_CHAINS)
    """K, chains per row, whose weights are averaged."""
    leapfrog: int = Field(default=5, ge=1, le=10_000)
    """Leapfrog steps per move; each takes a gradient of the decoder."""
    pilot_temperatures: int = Field(default=100, ge=2, le=1_000_000)
    """P, temperatures of the pilot chains that tune the step sizes."""
    pilot_chains: int = Field(default=4, ge=1, le=_MAX_CHAINS)
    """Pilot chains per row."""
    chunk: int = Field(default=128, ge=1, le=1 << 24)
    """Chains per call of the decoder; it changes the memory, not the result."""

    @classmethod
    def tiny(cls) -> Self:
        """Options that take milliseconds, for contract tests."""
        return cls(temperatures=8, chains=2, leapfrog=2, pilot_temperatures=6, pilot_chains=2)

    def moves(self) -> int:
        """Moves per row, including those of pilot chains; each takes ``leapfrog`` gradients."""
        return self.chains * self.temperatures + self.pilot_chains * self.pilot_temperatures

    def budget(self) -> dict[str, int | float | str]:
        """The options that the result depends on, for the label of a likelihood."""
        return self.model_dump(exclude={"chunk"})


def sigmoid_schedule(temperatures: int, radius: float) -> list[float]:
    """Inverse temperatures b_0 = 0 .. b_T = 1 on a sigmoid, dense at both ends (sec. 3, Wu et al. 2017).

    b_t = (s(radius (2 t / T - 1)) - s(-radius)) / (s(radius) - s(-radius)), s(x) = 1 / (1 + exp(-x)).

    >>> [round(b, 3) for b in sigmoid_schedule(4, 4.0)]
    [0.0, 0.105, 0.5, 0.895, 1.0]
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
    """Random numbers of the chains 0 .. chains - 1 of every row; chains of a row are adjacent."""
    all_chains = rng.repeat(_MAX_CHAINS)
    device = all_chains.index_B.device
    first_B1 = torch.arange(len(rng), device=device)[:, None] * _MAX_CHAINS
    chain_K = torch.arange(chains, device=device)
    return all_chains.rows((first_B1 + chain_K).reshape(-1))


def tune_step_sizes(target: Target, rng: Rng, options: AISOptions) -> Tensor:
    """Tune step sizes on pilot chains: log step size of each row and pilot temperature, (B, P) float64.

    All pilot chains of a row share one step size, which is adapted to their mean acceptance.

    Args:
        target: the distributions of B rows.
        rng: B rows.
        options: AIS options.
    """
    rows, dims, count = target.rows(), target.latent_dims(), options.pilot_chains
    temperatures = sigmoid_schedule(options.pilot_temperatures, options.radius)[1:]
    rng_N = _per_row(rng.fold("ais/pilot"), count)
    device = rng_N.index_B.device
    parts: list[Tensor] = []
    per_call = max(1, options.chunk // count)
    for first in range(0, rows, per_call):
        inside = torch.arange(first, min(first + per_call, rows), device=device)
        row_N = inside.repeat_interleave(count)
        chunk_rng = rng_N.rows(slice(first * count, first * count + len(row_N)))
        chains = hmc.start_chains(target, chunk_rng, row_N)
        # A good step size for N(0, 1) in this dimension (sec. 5.4.4, Neal 2011), where all chains start.
        log_step_B = torch.full((rows,), -0.25 * math.log(dims), dtype=torch.float64, device=device)
        curve: list[Tensor] = []
        for number, b in enumerate(temperatures):
            chains, probability_N = hmc.move(
                target,
                chains,
                chunk_rng.at(number),
                b=b,
                step_B=log_step_B.exp(),
                leapfrog=options.leapfrog,
            )
            curve.append(log_step_B[inside])
            excess_B = probability_N.view(-1, count).mean(1) - TARGET_ACCEPTANCE
            log_step_B = log_step_B.index_add(0, inside, _ADAPTATION_RATE * excess_B)
        parts.append(torch.stack(curve, 1))
    return torch.cat(parts)


def _step_size(log_step_BP: Tensor, fraction: float) -> Tensor:
    """Step size of each row at a fraction 0 .. 1 of the temperatures, interpolated, (B,)."""
    last = log_step_BP.shape[1] - 1
    position = fraction * last
    low = min(int(position), last - 1)
    return torch.lerp(log_step_BP[:, low], log_step_BP[:, low + 1], position - low).exp()


def annealed_log_weights(
    target: Target,
    rng: Rng,
    options: AISOptions,
    log_step_BP: Tensor,
    exact_BZ: Tensor | None = None,
) -> Tensor:
    """Run annealed chains; return their log weights log w, (K, B) float64.

    Args:
        target: the distributions of B rows.
        rng: B rows.
        options: AIS options.
        log_step_BP: log step sizes from :func:`tune_step_sizes`.
        exact_BZ: None for forward chains, whose w has the mean p(x). Exact samples of p(z | x) for backward
            chains, whose 1/w has the mean 1/p(x).
    """
    rows, count = target.rows(), options.chains
    b = sigmoid_schedule(options.temperatures, options.radius)
    purpose = "ais/forward" if exact_BZ is None else "ais/backward"
    rng_N = _per_row(rng.fold(purpose), count)
    row_of_chain_N = torch.arange(rows, device=rng_N.index_B.device).repeat_interleave(count)
    parts: list[Tensor] = []
    for first in range(0, rows * count, options.chunk):
        chunk = slice(first, first + options.chunk)
        row_N, chunk_rng = row_of_chain_N[chunk], rng_N.rows(chunk)
        if exact_BZ is None:
            chains = hmc.start_chains(target, chunk_rng, row_N)
            order = range(1, options.temperatures + 1)
        else:
            u_NZ = target.coordinates(exact_BZ[row_N], row_N)
            chains = hmc.chains_at(target, u_NZ, row_N)
            order = range(options.temperatures, 0, -1)
        log_weight_N = torch.zeros_like(chains.ratio_N)
        for t in order:
            # Change the temperature, then move at the new one.
            log_weight_N = log_weight_N + (b[t] - b[t - 1]) * chains.ratio_N
            current = t if exact_BZ is None else t - 1
            if 0 < current < options.temperatures:
                step_B = _step_size(log_step_BP, (current - 1) / (options.temperatures - 1))
                chains, _ = hmc.move(
                    target,
                    chains,
                    chunk_rng.at(current),
                    b=b[current],
                    step_B=step_B,
                    leapfrog=options.leapfrog,
                )
        parts.append(log_weight_N)
    return torch.cat(parts).view(rows, count).T


def lower_bound(target: Target, rng: Rng, options: AISOptions) -> tuple[Tensor, Tensor]:
    """Stochastic lower bound on log p(x): (B,) bound and (B,) standard error, in nats."""
    log_step_BP = tune_step_sizes(target, rng, options)
    return iwae.iwae_bound(annealed_log_weights(target, rng, options, log_step_BP), options.chains)


@dataclass(frozen=True)
class Sandwich:
    """Lower and upper bounds on log p(x) of simulated rows, in nats."""

    lower_B: Tensor
    upper_B: Tensor
    lower_stderr_B: Tensor
    upper_stderr_B: Tensor

    @property
    def gap_B(self) -> Tensor:
        """Upper minus lower bound, (B,) in nats; at least 0 in expectation."""
        return self.upper_B - self.lower_B


def sandwich(target: Target, exact_BZ: Tensor, rng: Rng, options: AISOptions) -> Sandwich:
    """Lower and upper bounds of simulated rows, from forward and backward chains (bidirectional Monte Carlo).

    Args:
        target: the distributions of rows x that were drawn from p(x | z).
        exact_BZ: the z that they were drawn from.
        rng: B rows.
        options: AIS options, for each direction.
    """
    log_step_BP = tune_step_sizes(target, rng, options)
    forward_KB = annealed_log_weights(target, rng, options, log_step_BP)
    backward_KB = annealed_log_weights(target, rng, options, log_step_BP, exact_BZ)
    lower_B, lower_stderr_B = iwae.iwae_bound(forward_KB, options.chains)
    negative_B, upper_stderr_B = iwae.iwae_bound(-backward_KB, options.chains)
    return Sandwich(lower_B, -negative_B, lower_stderr_B, upper_stderr_B)
