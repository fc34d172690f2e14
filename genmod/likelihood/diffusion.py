"""log p of a diffusion model, by its probability flow or by its variational bound, with the label of each.

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
"""Dimensions of images whose traces are not left to chance unless asked for."""

_COARSER = 10.0
"""The tolerance of the solve that a solver's error is told by, over the one that is asked for."""


_FIELDS = {
    "flow": ("tolerance", "steps", "order", "dequantise", "trace"),
    "bound": ("terms", "nfe"),
}
"""What each estimator alone knows."""


class DiffusionScore(ScoreOptions):
    """How to bound or estimate log p: by the flow's density, or by the variational bound."""

    estimator: Literal["flow", "bound"] = "flow"
    """``flow``: the density of the flow that the sampler solves. ``bound``: on the probability of the pixels
    under the process with noise in every step."""
    draws: int = Field(default=2, ge=2)
    """Evaluations per row, with their own dequantisation, probe and noise; their scatter gives the standard
    error. A flow without any of them is solved once."""
    unconditional: bool = False
    """Score p(x) by the net without its label, instead of p(x | label)."""
    tolerance: float = Field(default=1e-4, gt=0, lt=1)
    """Of the flow: what a step of a row may be wrong by, relative to numbers of about 1. Each row takes the
    steps it needs; 70 to 100 calls of the net and its derivative are usual, 1e-5 takes a third more."""
    steps: int | None = Field(default=None, ge=3)
    """Of the flow: so many fixed steps for all rows instead, each one call; 24 are quick, and say nothing of
    the rows that would need more."""
    order: int = Field(default=3, ge=1, le=4)
    """Of fixed steps: past values that the solver's polynomial goes through; 4 is for very smooth nets."""
    dequantise: Literal["uniform", "truncated_normal", "none"] = "uniform"
    """Of the flow: ``uniform`` bounds the probability of the pixels; ``truncated_normal`` does too, and suits
    nets trained on the bins' middles; ``none`` gives the density at the bins' middles."""
    trace: Literal["auto", "hutchinson", "exact"] = "auto"
    """Of the flow: ``exact`` costs as many derivatives as there are dimensions, ``hutchinson`` one, and
    chance; ``auto`` is ``exact`` up to 8 dimensions."""
    terms: int | None = Field(default=None, ge=1)
    """Of the bound: noise levels that it is the sum over; without, their integral (infinitely many)."""
    nfe: int = Field(default=64, ge=1)
    """Of the bound: noise levels of each draw, one of each of so many strata: calls of the net."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        other = "bound" if self.estimator == "flow" else "flow"
        for name in _FIELDS[other]:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is of estimator {other}, but estimator is {self.estimator}"
                )
        if self.terms is not None and self.nfe > self.terms:
            raise ValueError(f"nfe must not be above terms ({self.terms})")
        return self

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """Fixed steps, the other dequantisations, and the bound as a sum and as an integral."""
        return (
            cls(steps=4),
            cls(dequantise="truncated_normal", tolerance=1e-2),
            cls(dequantise="none", tolerance=1e-2),
            cls(estimator="bound", nfe=4),
            cls(estimator="bound", terms=8, nfe=4),
        )


def log_prob(process: Process, batch: Batch, rng: Rng, options: DiffusionScore) -> LogProb:
    """Log-likelihoods by the estimator that ``options`` names."""
    return (_by_bound if options.estimator == "bound" else _by_flow)(process, batch, rng, options)


def _by_bound(process: Process, batch: Batch, rng: Rng, options: DiffusionScore) -> LogProb:
    """The variational bound: a mean of unbiased evaluations."""
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
    """The density of the flow at sigma_min, before the sampler's last step to 0, and of no other sampler.

    With dequantisation, the mean over draws bounds the log probability of the pixels from below (Jensen) up
    to the solver's error. That is told by a coarser solve of the first draw, whose own error is the larger.
    """
    small = process.spec.dims <= _EXACT_TRACE_MAX_DIMS
    trace = ("exact" if small else "hutchinson") if options.trace == "auto" else options.trace
    certain = options.dequantise == "none" and trace == "exact"
    draws: list[Tensor] = []
    nfe_B = error_B = torch.zeros(len(batch), dtype=torch.float64, device=rng.index_B.device)
    for draw in range(1 if certain else options.draws):
        x_BCHW, log_q_B = _point(process, batch, rng.fold("dequantise").at(draw), options)
        probe_BCHW = None
        if trace == "hutchinson":
            row_rng = rng.fold("probe").at(draw)
            probe_BCHW = row_rng.rademacher(*process.spec.shape, dtype=torch.float64)
        solved = _solve(process, x_BCHW, probe_BCHW, options)
        draws.append(solved.nats_B - log_q_B)
        nfe_B = nfe_B + solved.nfe_B
        if draw == 0:
            coarse = _solve(process, x_BCHW, probe_BCHW, _coarser(options))
            error_B = (solved.nats_B - coarse.nats_B).abs()
            nfe_B = nfe_B + coarse.nfe_B
    nats_B, stderr_B = _mean(draws)
    label: LogProbLabel = "stochastic_lower_bound"
    if options.dequantise == "none":
        label = "exact_to_tolerance" if certain and options.steps is None else "estimate"
    places = {
        "uniform": "uniform dequantisation",
        "truncated_normal": "truncated normal dequantisation",
        "none": "at the middles of bins",
    }
    return LogProb(
        nats_B=nats_B,
        stderr_B=stderr_B,
        label=label,
        estimator="probability-flow",
        of=f"probability flow at sigma_min{process.given}, {places[options.dequantise]}",
        measure=units.NETWORK if options.dequantise == "none" else units.COUNTS,
        budget={**_solver_budget(process, options), "draws": len(draws), "trace": trace},
        columns={"nfe": nfe_B, "solver_error_nats": error_B},
    )


def _point(
    process: Process, batch: Batch, rng: Rng, options: DiffusionScore
) -> tuple[Tensor, Tensor]:
    """Where the density is asked for, and log q of that point."""
    x_BCHW = batch.x_BCHW(torch.float64)
    if options.dequantise == "none":
        return x_BCHW, x_BCHW.new_zeros(len(batch))
    if options.dequantise == "uniform":
        return dequantise.uniform(x_BCHW, rng, process.spec)
    return dequantise.truncated_normal(x_BCHW, rng, process.spec, process.sigma_min)


def _coarser(options: DiffusionScore) -> DiffusionScore:
    """A solve that is sure to be worse."""
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
    """Mean over draws and its standard error; 0 for a single one, which is not random."""
    nats_KB = torch.stack(draws)
    if len(draws) == 1:
        return nats_KB[0], torch.zeros_like(nats_KB[0])
    return nats_KB.mean(0), nats_KB.std(0) / math.sqrt(len(draws))
