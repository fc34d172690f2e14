"""Log-likelihoods of a diffusion model with their labels: by the probability flow or the variational bound.

Letters: B rows, C channels, H height, W width, K draws.
"""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from genmod import units
from genmod.distributions import dequantise
from genmod.interface.batch import Batch
from genmod.interface.log_prob import LogProb, LogProbLabel
from genmod.interface.options import ScoreOptions
from genmod.likelihood import adaptive, ode, vlb
from genmod.likelihood.adaptive import AdaptiveSteps, FlowDensity
from genmod.likelihood.ode import FixedSteps
from genmod.likelihood.process import Process
from genmod.rng import Rng

_EXACT_TRACE_MAX_DIMS = 8
"""Largest number of dimensions for which ``trace: auto`` is exact."""

_COARSER = 10.0
"""Factor on the tolerance of the coarser solve that estimates the solver's error."""


_FIELDS = {
    "flow": ("tolerance", "steps", "order", "dequantise", "trace"),
    "bound": ("terms", "nfe"),
}
"""Options that apply to one estimator only."""


class DiffusionScore(ScoreOptions):
    """Options of log p: the density of the probability flow, or the variational bound."""

    estimator: Literal["flow", "bound"] = "flow"
    """``flow``: the density of the probability flow ODE. ``bound``: the variational bound on the probability
    of the pixels under the stochastic process."""
    draws: int = Field(default=2, ge=2, le=10_000)
    """Evaluations per row, each with new dequantisation, probe and noise; their scatter gives the standard
    error. A deterministic flow (no dequantisation, exact trace) is solved once."""
    unconditional: bool = False
    """Score p(x) with the unconditional net instead of p(x | label)."""
    tolerance: float = Field(default=1e-4, ge=1e-12, lt=1)
    """Flow: largest error of a solver step, relative to numbers of order 1. Each row takes the steps that it
    needs: usually 70 to 100 evaluations of the net and its derivative, a third more for 1e-5."""
    steps: int | None = Field(default=None, ge=3, le=100_000)
    """Flow: fixed number of steps for all rows instead of adaptive ones, one evaluation each. 24 are fast,
    but there is no error control for difficult rows."""
    order: int = Field(default=3, ge=1, le=4)
    """Flow with fixed steps: order of the multistep solver; 4 is for very smooth nets."""
    dequantise: Literal["uniform", "truncated_normal", "none"] = "uniform"
    """Flow: ``uniform`` bounds the probability of the pixels; ``truncated_normal`` does too and suits nets
    trained on the middles of the bins; ``none`` evaluates the density at the middles of the bins."""
    trace: Literal["auto", "hutchinson", "exact"] = "auto"
    """Flow: ``exact`` takes one derivative per dimension; ``hutchinson`` takes one and is random; ``auto`` is
    ``exact`` up to 8 dimensions."""
    terms: int | None = Field(default=None, ge=1, le=1_000_000)
    """Bound: number of noise levels in the sum; if not given, the integral over all noise levels."""
    nfe: int = Field(default=64, ge=1, le=1_000_000)
    """Bound: network evaluations per draw, one noise level from each stratum."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        other = "bound" if self.estimator == "flow" else "flow"
        for name in _FIELDS[other]:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} applies only to estimator {other}, got estimator {self.estimator}; "
                    f"remove {name}"
                )
        if self.terms is not None and self.nfe > self.terms:
            raise ValueError(f"nfe: got {self.nfe}, expected at most terms={self.terms}")
        return self

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """Fixed steps, the other dequantisations, and the bound as an integral and as a sum."""
        return (
            cls(steps=4),
            cls(dequantise="truncated_normal", tolerance=1e-2),
            cls(dequantise="none", tolerance=1e-2),
            cls(estimator="bound", nfe=4),
            cls(estimator="bound", terms=8, nfe=4),
        )


def log_prob(process: Process, batch: Batch, rng: Rng, options: DiffusionScore) -> LogProb:
    """Log-likelihood of each row with the estimator that ``options`` selects.

    Args:
        process: the diffusion model, bound to the labels of the rows.
        batch: B rows.
        rng: B rows.
        options: the estimator and its settings.
    """
    return (_by_bound if options.estimator == "bound" else _by_flow)(process, batch, rng, options)


def _by_bound(process: Process, batch: Batch, rng: Rng, options: DiffusionScore) -> LogProb:
    """The variational bound: the mean of unbiased evaluations."""
    x_BCHW = batch.x_BCHW(torch.float64)
    draws = [
        vlb.variational_bound(
            process, x_BCHW, rng.fold("bound").at(draw), terms=options.terms, nfe=options.nfe
        )
        for draw in range(options.draws)
    ]
    nats_B, stderr_B = _mean(draws)
    terms = "infinitely many" if options.terms is None else options.terms
    return LogProb(
        nats_B=nats_B,
        stderr_B=stderr_B,
        label="lower_bound",
        estimator="variational-bound",
        of=f"noisy process from sigma_max to sigma_min{process.given}",
        measure=units.COUNTS,
        budget={
            "terms": terms,
            "nfe": options.nfe,
            "draws": options.draws,
            "sigma_min": process.sigma_min,
            "sigma_max": process.sigma_max,
        },
    )


def _by_flow(process: Process, batch: Batch, rng: Rng, options: DiffusionScore) -> LogProb:
    """The density of the probability flow at sigma_min, before the sampler's last step to 0.

    With dequantisation, the mean over draws is a lower bound on the log probability of the pixels (Jensen),
    up to the solver's error. That error is estimated by a coarser solve of the first draw.
    """
    small = process.spec.dims <= _EXACT_TRACE_MAX_DIMS
    trace = ("exact" if small else "hutchinson") if options.trace == "auto" else options.trace
    deterministic = options.dequantise == "none" and trace == "exact"
    draws: list[Tensor] = []
    nfe_B = error_B = torch.zeros(len(batch), dtype=torch.float64, device=rng.index_B.device)
    for draw in range(1 if deterministic else options.draws):
        # Dequantise, draw a probe, solve.
        x_BCHW, log_q_B = _point(process, batch, rng.fold("dequantise").at(draw), options)
        probe_BCHW = None
        if trace == "hutchinson":
            row_rng = rng.fold("probe").at(draw)
            probe_BCHW = row_rng.rademacher(*process.spec.shape, dtype=torch.float64)
        solved = _solve(process, x_BCHW, probe_BCHW, options)
        draws.append(solved.nats_B - log_q_B)
        nfe_B = nfe_B + solved.nfe_B
        # Estimate the solver's error once.
        if draw == 0:
            coarse = _solve(process, x_BCHW, probe_BCHW, _coarser(options))
            error_B = (solved.nats_B - coarse.nats_B).abs()
            nfe_B = nfe_B + coarse.nfe_B
    nats_B, stderr_B = _mean(draws)
    label: LogProbLabel = "stochastic_lower_bound"
    if options.dequantise == "none":
        label = "exact_to_tolerance" if deterministic and options.steps is None else "estimate"
    points = {
        "uniform": "uniform dequantisation",
        "truncated_normal": "truncated normal dequantisation",
        "none": "at the middles of bins",
    }
    return LogProb(
        nats_B=nats_B,
        stderr_B=stderr_B,
        label=label,
        estimator="probability-flow",
        of=f"probability flow at sigma_min{process.given}, {points[options.dequantise]}",
        measure=units.NETWORK if options.dequantise == "none" else units.COUNTS,
        budget={**_solver_budget(process, options), "draws": len(draws), "trace": trace},
        columns={"nfe": nfe_B, "solver_error_nats": error_B},
    )


def _point(
    process: Process, batch: Batch, rng: Rng, options: DiffusionScore
) -> tuple[Tensor, Tensor]:
    """The point at which the density is evaluated, and log q of that point."""
    x_BCHW = batch.x_BCHW(torch.float64)
    if options.dequantise == "none":
        return x_BCHW, x_BCHW.new_zeros(len(batch))
    if options.dequantise == "uniform":
        return dequantise.uniform(x_BCHW, rng, process.spec)
    return dequantise.truncated_normal(x_BCHW, rng, process.spec, process.sigma_min)


def _coarser(options: DiffusionScore) -> DiffusionScore:
    """Options of a less accurate solve."""
    if options.steps is not None:
        return options.model_copy(update={"steps": max(3, options.steps // 2)})
    return options.model_copy(update={"tolerance": _COARSER * options.tolerance})


def _solve(
    process: Process, x_BCHW: Tensor, probe_BCHW: Tensor | None, options: DiffusionScore
) -> FlowDensity:
    if options.steps is None:
        span = AdaptiveSteps(
            process.sigma_min, process.sigma_max, process.sigma_data, options.tolerance
        )
        return adaptive.log_density_adaptive(
            process.denoise, x_BCHW, probe_BCHW, span, process.prior
        )

    def denoise(x_BCHW: Tensor, sigma: float) -> Tensor:
        return process.denoise(x_BCHW, x_BCHW.new_full(x_BCHW.shape[:1], sigma))

    grid = FixedSteps(options.steps, options.order, process.sigma_min, process.sigma_max)
    nats_B = ode.log_density_fixed(denoise, x_BCHW, probe_BCHW, grid, process.prior)
    return FlowDensity(nats_B, torch.full_like(nats_B, options.steps + 1, dtype=torch.int64))


def _solver_budget(process: Process, options: DiffusionScore) -> dict[str, int | float | str]:
    if options.steps is not None:
        return FixedSteps(
            options.steps, options.order, process.sigma_min, process.sigma_max
        ).budget()
    return {
        "solver": "dopri5",
        "tolerance": options.tolerance,
        "sigma_min": process.sigma_min,
        "sigma_max": process.sigma_max,
    }


def _mean(draws: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean over draws and its standard error, (B,) each; 0 for a single draw, which is deterministic."""
    nats_KB = torch.stack(draws)
    if len(draws) == 1:
        return nats_KB[0], torch.zeros_like(nats_KB[0])
    return nats_KB.mean(0), nats_KB.std(0) / math.sqrt(len(draws))
