"""Density checks of the diffusion model: a new model, and the variational bound with the true denoiser.

Letters: B rows, M point masses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from genmod import units
from genmod.distributions.closed_form import PointMasses
from genmod.interface.batch import Batch
from genmod.interface.estimator_check import EstimatorCheck, check_estimate
from genmod.interface.log_prob import LogProb
from genmod.interface.model import DataStats, GenerativeModel
from genmod.interface.registry import ModelConfig, family
from genmod.likelihood.diffusion import DiffusionScore, log_prob
from genmod.likelihood.process import GaussianPrior, Process
from genmod.manifest import ImageSpec
from genmod.rng import rng_for

_SPEC = ImageSpec(channels=1, height=4, width=4, classes=0)
_MEAN, _STD, _SIGMA_MIN = 0.1, 0.25, 0.002
_ROWS = 40


def checks(seed: int) -> Iterator[EstimatorCheck]:
    """Check the probability flow on a new model, then the variational bound on point masses."""
    yield from new_model_checks(seed)
    yield from bound_checks(seed)


def new_model_checks(seed: int) -> Iterator[EstimatorCheck]:
    """A new net returns zeros, so each pixel of the model is N(mean, sigma_data^2 + sigma_min^2)."""
    net = family("diffusion").Config.tiny().model_dump(mode="json")
    stats = DataStats(mean=(_MEAN,), std=(_STD,))
    model = ModelConfig(family="diffusion", net=net, spec=_SPEC, stats=stats).build(seed).double()
    x_BCHW = _MEAN + _STD * rng_for(seed, "selftest/data", range(_ROWS)).normal(*_SPEC.shape)
    rows = Batch(units.to_pixels(x_BCHW), None, torch.arange(_ROWS))
    x_BCHW = rows.x_BCHW(torch.float64)
    mean = torch.tensor(_MEAN, dtype=torch.float64)
    normal = torch.distributions.Normal(mean, math.hypot(_STD, _SIGMA_MIN))
    density_B = normal.log_prob(x_BCHW).flatten(1).sum(1)
    mass_BCHW = normal.cdf(x_BCHW + units.HALF_BIN) - normal.cdf(x_BCHW - units.HALF_BIN)
    pixels_B = mass_BCHW.log().flatten(1).sum(1)
    for options, truth_B, tolerance_nats, slack_nats in (
        ({"draws": 4}, pixels_B, 1e-3, 0.05),
        ({"dequantise": "none", "trace": "exact"}, density_B, 1e-3, 0.0),
        ({"dequantise": "none", "steps": 48}, density_B, 1e-2, 0.0),
        ({"draws": 4, "dequantise": "truncated_normal"}, pixels_B, 1e-3, 3.0),
        ({"draws": 4, "steps": 48}, pixels_B, 1e-2, 0.05),
    ):
        score = _score(model, rows, seed, **options)
        settings = ", ".join(f"{name}={value}" for name, value in options.items())
        yield check_estimate(
            "new diffusion model",
            score,
            truth_B,
            tolerance_nats=tolerance_nats,
            slack_nats=slack_nats,
            name=f"{score.estimator}, {settings}",
        )


def _score(model: GenerativeModel, rows: Batch, seed: int, **options: Any) -> LogProb:
    rng = rng_for(seed, "selftest/score", rows.index_B)
    return model.log_prob(rows, rng, model.Score.model_validate(options))


def bound_checks(seed: int) -> Iterator[EstimatorCheck]:
    """With the true denoiser, the integral of the bound is log P itself; a sum over levels is below it."""
    points = PointMasses.images(5, _SPEC)
    sigma_min, sigma_max, sigma_data = 5e-4, 80.0, 0.6

    def denoise(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
        return points.denoise(x_BCHW.flatten(1), sigma_B).view_as(x_BCHW)

    zero_C11 = torch.zeros(1, 1, 1, dtype=torch.float64)
    prior = GaussianPrior(zero_C11, math.hypot(sigma_max, sigma_data))
    process = Process(denoise, prior, sigma_min, sigma_max, sigma_data, _SPEC, given="")
    point_B = torch.arange(100) % len(points.weight_M)
    pixels_BCHW = units.to_pixels(points.point_MD[point_B]).view(-1, *_SPEC.shape)
    rows = Batch(pixels_BCHW, None, torch.arange(100))
    truth_B = points.weight_M.log()[point_B]
    rng = rng_for(seed, "selftest/atoms", range(100))
    for terms, nfe, slack_nats in ((None, 32, 0.1), (1000, 32, 0.5), (64, 64, 6.0)):
        options = DiffusionScore(estimator="bound", terms=terms, nfe=nfe, draws=8)
        score = log_prob(process, rows, rng, options)
        name = f"{score.estimator}, {terms or 'infinitely many'} terms"
        yield check_estimate("images in 16-D", score, truth_B, slack_nats=slack_nats, name=name)
        if terms is None:
            yield check_estimate(
                "images in 16-D",
                score,
                truth_B,
                unbiased=True,
                tolerance_nats=0.01,
                name=f"{name}, against log P",
            )
