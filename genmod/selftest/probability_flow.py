"""The density of the probability flow, on distributions whose denoisers are known.

Letters: B rows, C channels, H height, W width, D dimensions, K draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from genmod.likelihood.ode import Grid, Prior, log_density
from genmod.models.base import LogProb
from genmod.rng import rng_for
from genmod.samplers.ode import Denoise
from genmod.selftest.check import Check, judge
from genmod.selftest.truths import LinearGaussian, Mixture

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0


def checks(seed: int) -> Iterator[Check]:
    """Trace exact and by probes, on a correlated Gaussian and on mixtures."""
    gaussian = LinearGaussian.example(dims=6, latents=3, noise=0.2)
    yield fixed(gaussian, "gaussian in 6-D", seed, rows=64, trace="exact")
    yield fixed(gaussian, "gaussian in 6-D", seed, rows=64, trace="hutchinson")
    ring = Mixture.ring(6, 0.5, 0.1)
    yield fixed(ring, "mixture in 2-D", seed, rows=200, trace="exact")
    scattered = Mixture.scattered(3, 16, 0.5, 0.15)
    yield fixed(scattered, "mixture in 16-D", seed, rows=100, trace="hutchinson")


def denoiser(truth: LinearGaussian | Mixture) -> Denoise:
    """D(x; sigma) of images of D channels and one pixel."""

    def denoise(x_BCHW: Tensor, sigma: float) -> Tensor:
        clean_BD = truth.denoise(x_BCHW.flatten(1), torch.tensor(sigma, dtype=torch.float64))
        return clean_BD.view_as(x_BCHW)

    return denoise


def fixed(
    truth: LinearGaussian | Mixture,
    bench: str,
    seed: int,
    *,
    rows: int,
    trace: str,
    steps: int = 100,
) -> Check:
    """The solver on a fixed grid."""
    grid = Grid(steps, 4, SIGMA_MIN, SIGMA_MAX)
    rng = rng_for(seed, "selftest/rows", range(rows))
    x_BD = truth.draw(rng.fold("data"))
    x_BD = x_BD + SIGMA_MIN * rng.fold("least noise").normal(x_BD.shape[1], dtype=torch.float64)
    x_BCHW = x_BD[:, :, None, None]
    prior = Prior(truth.mean_D[:, None, None], SIGMA_MAX)
    draws: list[Tensor] = []
    for draw in range(1 if trace == "exact" else 8):
        probe_BCHW = None
        if trace == "hutchinson":
            probe_BCHW = rng.fold("probe").at(draw).rademacher(*x_BCHW.shape[1:], dtype=x_BD.dtype)
        draws.append(log_density(denoiser(truth), x_BCHW, probe_BCHW, grid, prior))
    nats_KB = torch.stack(draws)
    stderr_B = nats_KB.std(0) / math.sqrt(len(draws)) if len(draws) > 1 else nats_KB.new_zeros(rows)
    log_prob = LogProb(
        nats_B=nats_KB.mean(0),
        stderr_B=stderr_B,
        label="estimate",
        estimator="probability-flow",
        of="flow of the true denoiser",
        measure="lebesgue",
        budget=grid.budget(),
    )
    truth_B = truth.nats(x_BD, SIGMA_MIN)
    name = f"probability-flow, fixed steps, {trace} trace"
    return judge(bench, log_prob, truth_B, tolerance_nats=2e-3, name=name)
