"""Density checks of the flow: models trained for seconds on mixtures whose pixel probabilities are known.

Letters: B rows, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from genmod import units
from genmod.distributions.closed_form import IsotropicMixture
from genmod.interface.batch import Batch
from genmod.interface.estimator_check import EstimatorCheck, check_estimate
from genmod.interface.log_prob import LogProb
from genmod.interface.model import DataStats, GenerativeModel, TrainBriefly
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.rng import Rng, rng_for

_ROWS = 1000


def checks(seed: int, train: TrainBriefly) -> Iterator[EstimatorCheck]:
    """Check that the density integrates to 1, that Gibbs' inequality holds, and that draws follow it."""
    pair = ImageSpec(channels=1, height=1, width=2, classes=0)
    ring = IsotropicMixture.ring(6, 0.5, 0.1)
    model = _trained(pair, ring, seed, train, steps=250)
    yield mass_of_pairs(model, seed)
    yield from _gibbs_and_draws(model, ring, seed, slack_nats=0.1)
    square = ImageSpec(channels=1, height=4, width=4, classes=0)
    scattered = IsotropicMixture.scattered(3, 16, 0.5, 0.15)
    model = _trained(square, scattered, seed, train, steps=500)
    yield from _gibbs_and_draws(model, scattered, seed, slack_nats=1.0)


def _rows(truth: IsotropicMixture, spec: ImageSpec, rng: Rng) -> Batch:
    """Draws of the mixture, as pixels."""
    pixels_BD = units.to_pixels(truth.draw(rng))
    return Batch(pixels_BD.view(-1, *spec.shape), None, rng.index_B)


def _trained(
    spec: ImageSpec, truth: IsotropicMixture, seed: int, train: TrainBriefly, *, steps: int
) -> GenerativeModel:
    """An autoregressive flow trained on draws of the mixture."""
    net: dict[str, Any] = {"order": "autoregressive", "transforms": 3, "widths": (64,)}
    stats = DataStats(mean=(0.0,), std=(1.0,))
    model = ModelConfig(family="flow", net=net, spec=spec, stats=stats).build(seed)
    return train(model, lambda rng: _rows(truth, spec, rng), seed=seed, steps=steps, lr=1e-2)


def _score(model: GenerativeModel, rows: Batch, seed: int, **options: Any) -> LogProb:
    rng = rng_for(seed, "selftest/score", rows.index_B)
    return model.log_prob(rows, rng, model.Score.model_validate(options))


def mass_of_pairs(model: GenerativeModel, seed: int) -> EstimatorCheck:
    """Integral of the density of images of 1x2 pixels, by the midpoint rule over all 65,536 bins: 1."""
    levels = units.LEVELS
    level_K = torch.arange(levels)
    pixels_B2 = torch.cartesian_prod(level_K, level_K).to(torch.uint8)
    rows = Batch(pixels_B2.view(-1, 1, 1, 2), None, torch.arange(levels**2))
    score = _score(model, rows, seed, dequantise="none")
    log_mass_1 = (score.nats_B + 2 * math.log(2 / levels)).logsumexp(0, keepdim=True)
    mass = replace(score, nats_B=log_mass_1, stderr_B=torch.zeros_like(log_mass_1))
    zero_1 = torch.zeros_like(log_mass_1)
    name = f"{score.estimator}, log of its integral"
    return check_estimate("mixture in 2-D", mass, zero_1, tolerance_nats=1e-3, name=name)


def _gibbs_and_draws(
    model: GenerativeModel, truth: IsotropicMixture, seed: int, slack_nats: float
) -> Iterator[EstimatorCheck]:
    """Gibbs' inequality on new rows: mean log q <= mean log p; then the model's own draws."""
    spec, distribution = model.spec, f"mixture in {model.spec.dims}-D"
    rows = _rows(truth, spec, rng_for(seed, "selftest/test", range(_ROWS)))
    truth_B = truth.bin_nats(rows.pixels_BCHW.flatten(1), units.LEVELS)
    for k in (1, 16):
        score = _score(model, rows, seed, k=k, repeats=4)
        name = f"{score.estimator}, k={k}"
        yield check_estimate(
            distribution, score, truth_B, slack_nats=slack_nats, in_the_mean=True, name=name
        )
    yield _importance_ratio(model, truth, seed)


def _importance_ratio(model: GenerativeModel, truth: IsotropicMixture, seed: int) -> EstimatorCheck:
    """The mean of P / Q over draws of Q is 1 if sampler and density belong to one distribution Q."""
    rng = rng_for(seed, "selftest/draws", range(_ROWS))
    x_BCHW = model.sample(None, rng, model.Sample())
    rows = Batch(units.to_pixels(x_BCHW), None, rng.index_B)
    score = _score(model, rows, seed, k=16, repeats=2)
    truth_B = truth.bin_nats(rows.pixels_BCHW.flatten(1), units.LEVELS)
    ratio_B: Tensor = (truth_B - score.nats_B).exp()
    ratios = replace(score, nats_B=ratio_B, label="estimate")
    one_B = torch.ones_like(ratio_B)
    distribution = f"mixture in {model.spec.dims}-D"
    name = f"{score.estimator}, mean of P / Q over draws"
    return check_estimate(
        distribution, ratios, one_B, tolerance_nats=0.02, in_the_mean=True, name=name
    )
