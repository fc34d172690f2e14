"""The diffusion family's log p: of a new model, which is a Gaussian, and the bound on data of a few images.

Letters: B rows, M atoms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from genmod import units
from genmod.interface.batch import Batch
from genmod.interface.log_prob import LogProb
from genmod.interface.model import DataStats, GenerativeModel
from genmod.interface.registry import ModelConfig, family
from genmod.likelihood.diffusion import DiffusionScore, log_prob
from genmod.likelihood.process import GaussianPrior, Process
from genmod.manifest import ImageSpec
from genmod.rng import rng_for
from genmod.selftest.check import EstimatorCheck, check_estimate
from genmod.selftest.truths import PointMasses

SPEC = ImageSpec(channels=1, height=4, width=4, classes=0)
MEAN, STD = 0.1, 0.25
_ROWS = 40


def checks(seed: int) -> Iterator[EstimatorCheck]:
    """Every way to score, through the family's own interface."""
    yield from _new_model(seed)
    yield from _atoms(seed)


def _new_model(seed: int) -> Iterator[EstimatorCheck]:
    """A new net gives zeros, so the model is N(mean, sigma_data^2 + sigma_min^2) of each pixel."""
    net = family("diffusion").Config.tiny().model_dump(mode="json")
    stats = DataStats(mean=(MEAN,), std=(STD,))
    model = ModelConfig(family="diffusion", net=net, spec=SPEC, stats=stats).build(seed).double()
    x_BCHW = MEAN + STD * rng_for(seed, "selftest/data", range(_ROWS)).normal(*SPEC.shape)
    rows = Batch(units.to_pixels(x_BCHW), None, torch.arange(_ROWS))
    normal = torch.distributions.Normal(
        torch.tensor(MEAN, dtype=torch.float64), math.hypot(STD, 0.002)
    )
    x_BCHW = rows.x_BCHW(torch.float64)
    density_B = normal.log_prob(x_BCHW).flatten(1).sum(1)
    bins = normal.cdf(x_BCHW + units.HALF_BIN) - normal.cdf(x_BCHW - units.HALF_BIN)
    pixels_B = bins.log().flatten(1).sum(1)
    for options, truth_B, tolerance_nats, slack_nats in (
        ({"draws": 4}, pixels_B, 1e-3, 0.05),
        ({"dequantise": "none", "trace": "exact"}, density_B, 1e-3, 0.0),
        ({"dequantise": "none", "steps": 48}, density_B, 1e-2, 0.0),
        ({"draws": 4, "dequantise": "truncated_normal"}, pixels_B, 1e-3, 3.0),
        ({"draws": 4, "steps": 48}, pixels_B, 1e-2, 0.05),
    ):
        found = _score(model, rows, seed, **options)
        yield check_estimate(
            "new diffusion model",
            found,
            truth_B,
            tolerance_nats=tolerance_nats,
            slack_nats=slack_nats,
            name=f"{found.estimator}, {', '.join(str(value) for value in options.values())}",
        )


def _score(model: GenerativeModel, rows: Batch, seed: int, **options: Any) -> LogProb:
    rng = rng_for(seed, "selftest/score", rows.index_B)
    return model.log_prob(rows, rng, model.Score.model_validate(options))


def _atoms(seed: int) -> Iterator[EstimatorCheck]:
    """With the true denoiser the bound's integral is log P itself; a sum over levels is below it."""
    atoms = PointMasses.images(5, SPEC)
    sigma_min, sigma_max, spread = 5e-4, 80.0, 0.6

    def denoise(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
        return atoms.denoise(x_BCHW.flatten(1), sigma_B).view_as(x_BCHW)

    prior = GaussianPrior(torch.zeros(1, 1, 1, dtype=torch.float64), math.hypot(sigma_max, spread))
    process = Process(denoise, prior, sigma_min, sigma_max, spread, SPEC, given="")
    which_B = torch.arange(100) % len(atoms.weight_M)
    pixels_BCHW = units.to_pixels(atoms.point_MD[which_B]).view(-1, *SPEC.shape)
    rows = Batch(pixels_BCHW, None, torch.arange(100))
    truth_B = atoms.weight_M.log()[which_B]
    rng = rng_for(seed, "selftest/atoms", range(100))
    for terms, nfe, slack_nats in ((None, 32, 0.1), (1000, 32, 0.5), (64, 64, 6.0)):
        options = DiffusionScore(estimator="bound", terms=terms, nfe=nfe, draws=8)
        found = log_prob(process, rows, rng, options)
        name = f"{found.estimator}, {terms or 'infinitely many'} terms"
        yield check_estimate("images in 16-D", found, truth_B, slack_nats=slack_nats, name=name)
        if terms is None:
            name += ", against log P"
            yield check_estimate(
                "images in 16-D", found, truth_B, unbiased=True, tolerance_nats=0.01, name=name
            )
