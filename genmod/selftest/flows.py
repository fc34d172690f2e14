"""The flow family, trained for seconds on mixtures whose pixels' probabilities are known.

Letters: B rows, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from genmod import units
from genmod.interface.batch import Batch
from genmod.interface.log_prob import LogProb
from genmod.interface.model import DataStats, GenerativeModel
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.rng import Rng, rng_for
from genmod.selftest.check import EstimatorCheck, check_estimate
from genmod.selftest.truths import IsotropicMixture
from genmod.training.loop import Plan, train
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.world import SingleProcess

_ROWS = 1000


def checks(seed: int) -> Iterator[EstimatorCheck]:
    """Exact where it says so; never above the truth in the mean, and near it; as likely as it draws."""
    pair = ImageSpec(channels=1, height=1, width=2, classes=0)
    model = _trained(pair, IsotropicMixture.ring(6, 0.5, 0.1), seed, steps=250)
    yield _mass_of_pairs(model, seed)
    yield from _against(model, IsotropicMixture.ring(6, 0.5, 0.1), seed, slack_nats=0.1)
    square = ImageSpec(channels=1, height=4, width=4, classes=0)
    scattered = IsotropicMixture.scattered(3, 16, 0.5, 0.15)
    model = _trained(square, scattered, seed, steps=500)
    yield from _against(model, scattered, seed, slack_nats=1.0)


def _rows(truth: IsotropicMixture, spec: ImageSpec, rng: Rng) -> Batch:
    pixels_BD = units.to_pixels(truth.draw(rng))
    return Batch(pixels_BD.view(-1, *spec.shape), None, rng.index_B)


def _trained(spec: ImageSpec, truth: IsotropicMixture, seed: int, steps: int) -> GenerativeModel:
    net: dict[str, Any] = {"order": "autoregressive", "transforms": 3, "widths": (64,)}
    stats = DataStats(mean=(0.0,), std=(1.0,))
    model = ModelConfig(family="flow", net=net, spec=spec, stats=stats).build(seed)
    batch = 256
    config = TrainConfig(
        nimg=steps * batch,
        batch=batch,
        optim=OptimConfig(lr=1e-2, warmup_nimg=10 * batch),
        ema_halflife_nimg=10 * batch,
    )

    def stream(start: int) -> Generator[Batch, None, None]:
        for first in range(start, config.nimg, batch):
            rng = rng_for(seed, "selftest/train", range(first, first + batch))
            yield _rows(truth, spec, rng)

    return train(model, stream, SingleProcess(), Plan(config, seed)).ema


def _score(model: GenerativeModel, rows: Batch, seed: int, **options: Any) -> LogProb:
    rng = rng_for(seed, "selftest/score", rows.index_B)
    return model.log_prob(rows, rng, model.Score.model_validate(options))


def _mass_of_pairs(model: GenerativeModel, seed: int) -> EstimatorCheck:
    """The density at the middles of all 65,536 bins, summed: 1, by the midpoint rule."""
    levels = units.LEVELS
    each = torch.arange(levels)
    pixels_B2 = torch.cartesian_prod(each, each).to(torch.uint8)
    rows = Batch(pixels_B2.view(-1, 1, 1, 2), None, torch.arange(levels**2))
    score = _score(model, rows, seed, dequantise="none")
    total = (score.nats_B + 2 * math.log(2 / levels)).logsumexp(0, keepdim=True)
    whole = replace(score, nats_B=total, stderr_B=torch.zeros_like(total))
    zero_B = torch.zeros_like(total)
    name = f"{score.estimator}, log of its integral"
    return check_estimate("mixture in 2-D", whole, zero_B, tolerance_nats=1e-3, name=name)


def _against(
    model: GenerativeModel, truth: IsotropicMixture, seed: int, slack_nats: float
) -> Iterator[EstimatorCheck]:
    """Gibbs' inequality on fresh rows, and the model's own draws."""
    spec, bench = model.spec, f"mixture in {model.spec.dims}-D"
    rows = _rows(truth, spec, rng_for(seed, "selftest/test", range(_ROWS)))
    truth_B = truth.bin_nats(rows.pixels_BCHW.flatten(1), units.LEVELS)
    for k in (1, 16):
        score = _score(model, rows, seed, k=k, repeats=4)
        name = f"{score.estimator}, k={k}"
        yield check_estimate(
            bench, score, truth_B, slack_nats=slack_nats, in_the_mean=True, name=name
        )
    yield _draws(model, truth, seed)


def _draws(model: GenerativeModel, truth: IsotropicMixture, seed: int) -> EstimatorCheck:
    """The mean of P / Q over draws of Q is 1, if draws and density are of one model."""
    rng = rng_for(seed, "selftest/draws", range(_ROWS))
    x_BCHW = model.sample(None, rng, model.Sample())
    rows = Batch(units.to_pixels(x_BCHW), None, rng.index_B)
    score = _score(model, rows, seed, k=16, repeats=2)
    truth_B = truth.bin_nats(rows.pixels_BCHW.flatten(1), units.LEVELS)
    ratio_B: Tensor = (truth_B - score.nats_B).exp()
    draws = replace(score, nats_B=ratio_B, label="estimate")
    one_B = torch.ones_like(ratio_B)
    bench, name = f"mixture in {model.spec.dims}-D", f"{score.estimator}, mean of P / Q over draws"
    return check_estimate(bench, draws, one_B, tolerance_nats=0.02, in_the_mean=True, name=name)
