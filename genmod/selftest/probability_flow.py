"""The density of the probability flow, on distributions whose denoisers are known.

Letters: B rows, C channels, H height, W width, D dimensions, K draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from genmod.interface.log_prob import LogProb
from genmod.likelihood import adaptive, ode
from genmod.likelihood.process import GaussianPrior
from genmod.rng import rng_for
from genmod.selftest.check import EstimatorCheck, check_estimate
from genmod.selftest.truths import IsotropicMixture, LinearGaussian

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
_Truth = LinearGaussian | IsotropicMixture


def checks(seed: int) -> Iterator[EstimatorCheck]:
    """Adaptive steps and fixed ones, the trace exact and by probes."""
    gaussian = LinearGaussian.example(dims=6, latents=3, noise=0.2)
    ring, scattered = (
        IsotropicMixture.ring(6, 0.5, 0.1),
        IsotropicMixture.scattered(3, 16, 0.5, 0.15),
    )
    for truth, bench in (
        (gaussian, "gaussian in 6-D"),
        (ring, "mixture in 2-D"),
        (scattered, "mixture in 16-D"),
    ):
        for steps in (None, 100):
            yield _check(truth, bench, seed, rows=100, draws=0, steps=steps)
            yield _check(truth, bench, seed, rows=100, draws=8, steps=steps)


def _check(
    truth: _Truth, bench: str, seed: int, *, rows: int, draws: int, steps: int | None
) -> EstimatorCheck:
    """Rows drawn from the truth with the least noise; 0 draws of probes are the exact trace."""
    rng = rng_for(seed, "selftest/rows", range(rows))
    x_BD = truth.draw(rng.fold("data"))
    x_BD = x_BD + SIGMA_MIN * rng.fold("least noise").normal(x_BD.shape[1], dtype=torch.float64)
    x_BCHW = x_BD[:, :, None, None]
    solves = [_solve(truth, x_BCHW, None, steps)] if not draws else []
    for draw in range(draws):
        probe_BCHW = rng.fold("probe").at(draw).rademacher(*x_BCHW.shape[1:], dtype=x_BD.dtype)
        solves.append(_solve(truth, x_BCHW, probe_BCHW, steps))
    nats_KB = torch.stack(solves)
    log_prob = LogProb(
        nats_B=nats_KB.mean(0),
        stderr_B=nats_KB.std(0) / math.sqrt(draws) if draws else torch.zeros_like(nats_KB[0]),
        label="estimate" if draws or steps else "exact_to_tolerance",
        estimator="probability-flow",
        of="flow of the true denoiser",
        measure="lebesgue on R^D",
        budget={},
    )
    # Fixed steps have no error control: they may be off where a mixture's parts meet.
    tolerance_nats = 5e-3 if steps is None else 5e-2
    options = (
        f"{'adaptive' if steps is None else 'fixed'} steps, {'probes' if draws else 'exact trace'}"
    )
    return check_estimate(
        bench,
        log_prob,
        truth.nats(x_BD, SIGMA_MIN),
        tolerance_nats=tolerance_nats,
        name=f"probability-flow, {options}",
    )


def _solve(truth: _Truth, x_BCHW: Tensor, probe_BCHW: Tensor | None, steps: int | None) -> Tensor:
    """(B,) nats."""
    spread = float(truth.std_D.square().mean().sqrt())
    prior = GaussianPrior(truth.mean_D[:, None, None], math.hypot(SIGMA_MAX, spread))

    def denoise(x_BCHW: Tensor, sigma: Tensor) -> Tensor:
        return truth.denoise(x_BCHW.flatten(1), sigma).view_as(x_BCHW)

    if steps is None:
        span = adaptive.AdaptiveSteps(SIGMA_MIN, SIGMA_MAX, spread, tolerance=1e-5)
        return adaptive.log_density_adaptive(denoise, x_BCHW, probe_BCHW, span, prior).nats_B

    def denoise_all(x_BCHW: Tensor, sigma: float) -> Tensor:
        return denoise(x_BCHW, torch.tensor(sigma, dtype=torch.float64))

    grid = ode.FixedSteps(steps, 4, SIGMA_MIN, SIGMA_MAX)
    return ode.log_density_fixed(denoise_all, x_BCHW, probe_BCHW, grid, prior)
