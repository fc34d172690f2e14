"""Checks of the probability flow's density, on distributions with known denoisers.

Letters: B rows, C channels, H height, W width, D dimensions, K draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from genmod.distributions.closed_form import IsotropicMixture, LinearGaussian
from genmod.interface.estimator_check import EstimatorCheck, check_estimate
from genmod.interface.log_prob import LogProb
from genmod.likelihood import adaptive, ode
from genmod.likelihood.process import GaussianPrior
from genmod.rng import rng_for

_SIGMA_MIN, _SIGMA_MAX = 0.002, 80.0
_Truth = LinearGaussian | IsotropicMixture


def checks(seed: int) -> Iterator[EstimatorCheck]:
    """Check adaptive and fixed steps, each with the exact trace and with random probes."""
    for truth, distribution in (
        (LinearGaussian.example(dims=6, latents=3, noise=0.2), "gaussian in 6-D"),
        (IsotropicMixture.ring(6, 0.5, 0.1), "mixture in 2-D"),
        (IsotropicMixture.scattered(3, 16, 0.5, 0.15), "mixture in 16-D"),
    ):
        for steps in (None, 100):
            yield flow_check(truth, distribution, seed, rows=100, draws=0, steps=steps)
            yield flow_check(truth, distribution, seed, rows=100, draws=8, steps=steps)


def flow_check(
    truth: _Truth, distribution: str, seed: int, *, rows: int, draws: int, steps: int | None
) -> EstimatorCheck:
    """Check the flow's density at draws of the distribution with noise of sigma_min.

    Args:
        truth: the distribution, with its denoiser.
        distribution: its name.
        seed: of rows and probes.
        rows: number of rows.
        draws: random probes per row; 0 for the exact trace.
        steps: fixed steps; None for the adaptive solver.
    """
    rng = rng_for(seed, "selftest/rows", range(rows))
    x_BD = truth.draw(rng.fold("data"))
    x_BD = x_BD + _SIGMA_MIN * rng.fold("least noise").normal(x_BD.shape[1], dtype=torch.float64)
    x_BCHW = x_BD[:, :, None, None]
    solutions = [_solve(truth, x_BCHW, None, steps)] if not draws else []
    for draw in range(draws):
        probe_BCHW = rng.fold("probe").at(draw).rademacher(*x_BCHW.shape[1:], dtype=x_BD.dtype)
        solutions.append(_solve(truth, x_BCHW, probe_BCHW, steps))
    nats_KB = torch.stack(solutions)
    log_prob = LogProb(
        nats_B=nats_KB.mean(0),
        stderr_B=nats_KB.std(0) / math.sqrt(draws) if draws else torch.zeros_like(nats_KB[0]),
        label="estimate" if draws or steps else "exact_to_tolerance",
        estimator="probability-flow",
        of="flow of the true denoiser",
        measure="lebesgue on R^D",
        budget={},
    )
    # Fixed steps have no error control: their error can be larger where components of a mixture meet.
    tolerance_nats = 5e-3 if steps is None else 5e-2
    solver = "adaptive steps" if steps is None else "fixed steps"
    name = f"probability-flow, {solver}, {'probes' if draws else 'exact trace'}"
    truth_B = truth.nats(x_BD, _SIGMA_MIN)
    return check_estimate(distribution, log_prob, truth_B, tolerance_nats=tolerance_nats, name=name)


def _solve(truth: _Truth, x_BCHW: Tensor, probe_BCHW: Tensor | None, steps: int | None) -> Tensor:
    """Log density of each row at sigma_min, (B,) in nats."""
    scale = float(truth.std_D.square().mean().sqrt())
    prior = GaussianPrior(truth.mean_D[:, None, None], math.hypot(_SIGMA_MAX, scale))

    def denoise_rows(x_BCHW: Tensor, sigma: Tensor) -> Tensor:
        return truth.denoise(x_BCHW.flatten(1), sigma).view_as(x_BCHW)

    if steps is None:
        adaptive_steps = adaptive.AdaptiveSteps(_SIGMA_MIN, _SIGMA_MAX, scale, tolerance=1e-5)
        return adaptive.log_density_adaptive(
            denoise_rows, x_BCHW, probe_BCHW, adaptive_steps, prior
        ).nats_B

    def denoise(x_BCHW: Tensor, sigma: float) -> Tensor:
        return denoise_rows(x_BCHW, torch.tensor(sigma, dtype=torch.float64))

    fixed_steps = ode.FixedSteps(steps, 4, _SIGMA_MIN, _SIGMA_MAX)
    return ode.log_density_fixed(denoise, x_BCHW, probe_BCHW, fixed_steps, prior)
