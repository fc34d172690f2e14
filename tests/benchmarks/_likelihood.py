"""Diffusion trained for likelihood against the same net trained for quality, on 8-bit Fashion-MNIST.

    .venv/bin/python -m tests.benchmarks._likelihood [--seeds 2] [--nimg 25600]

``make bench`` leaves it out, for it takes some minutes a seed. Protocol: one core; both nets see the same
images in the same order, none of their labels used; EMA weights; the first 100 test images, all scored by
three estimators, the flow with 48 fixed steps. Bits per dimension, lower is better, with the standard error
over test images; the differences are paired by image.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from genmod import units
from genmod.interface.batch import Batch
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.models.diffusion import DiffusionScore, Model
from genmod.rng import rng_for
from genmod.training.loop import Plan, train
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.world import SingleProcess
from tests.benchmarks import _equal_time as shared

SPEC = ImageSpec(channels=1, height=28, width=28)
NET = {"unshuffle": 2, "widths": [32, 64], "blocks": 1, "embedding": 64}
OBJECTIVES = {
    "quality": {},
    "likelihood": {
        "objective": "likelihood", "fourier": [6], "sigma_min": 0.0013, "sigma_max": 12.0,
    },
}  # fmt: skip
SCORES = {
    "bound": DiffusionScore(estimator="bound"),
    "flow, uniform": DiffusionScore(steps=48),
    "flow, truncated normal": DiffusionScore(steps=48, dequantise="truncated_normal"),
}
BATCH, TEST = 64, 100
QUICK = shared.QUICK | {
    "BATCH": 8,
    "TEST": 4,
    "SCORES": {
        "bound": DiffusionScore(estimator="bound", nfe=2),
        "flow, uniform": DiffusionScore(steps=3),
    },
}
QUICK_ARGS = ["--seeds", "1", "--nimg", "16"]


def _trained(net: dict, train_NCHW: Tensor, seed: int, nimg: int) -> tuple[Model, float]:
    """The average of the weights, and training's CPU seconds."""
    x_NCHW = units.to_network(train_NCHW[:10_000], torch.float64)
    stats = DataStats(mean=(x_NCHW.mean().item(),), std=(x_NCHW.std().item(),))
    model = ModelConfig(family="diffusion", net=NET | net, spec=SPEC, stats=stats).build(seed)

    def stream(start: int) -> Iterator[Batch]:
        for first in range(start, nimg, BATCH):
            index_B = torch.arange(first, first + BATCH)
            row_B = rng_for(seed, "bench/row", index_B).integers(len(train_NCHW), 1)[:, 0]
            yield Batch(train_NCHW[row_B], None, index_B)

    optim = OptimConfig(lr=1e-3, warmup_nimg=2_000)
    config = TrainConfig(nimg=nimg, batch=BATCH, optim=optim, ema_halflife_nimg=2_000)
    start_s = time.process_time()
    ema = train(model, stream, SingleProcess(), Plan(config, seed)).ema
    assert isinstance(ema, Model)
    return ema, time.process_time() - start_s


def _seed(train_NCHW: Tensor, rows: Batch, seed: int, nimg: int) -> tuple[dict, dict]:
    """Bits per dimension of every test image, by objective and estimator; CPU seconds by objective."""
    bits, cpu_s = {}, {}
    for objective, net in OBJECTIVES.items():
        model, cpu_s[objective] = _trained(net, train_NCHW, seed, nimg)
        for name, how in SCORES.items():
            score = model.log_prob(rows, rng_for(seed, "bench/score", rows.index_B), how)
            bits[objective, name] = score.bits_per_dim(SPEC)
            print(
                f"seed {seed} {objective}, {name}: {bits[objective, name].mean():.4f}", flush=True
            )
    return bits, cpu_s


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--nimg", type=int, default=25_600)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = Batch(shared.images("t10k")[:TEST], None, torch.arange(TEST))
    found = [
        _seed(shared.images("train"), rows, seed, options.nimg) for seed in range(options.seeds)
    ]
    mean = {key: torch.stack([bits[key] for bits, _ in found]).mean(0) for key in found[0][0]}
    table = {
        f"{objective}, {name}": [bits_B.mean().item(), bits_B.std().item() / math.sqrt(TEST)]
        for (objective, name), bits_B in mean.items()
    }
    gap_B = mean["likelihood", "bound"] - mean["quality", "bound"]
    best = [min(v[0] for k, v in table.items() if k.startswith(o)) for o in OBJECTIVES]
    result = {
        "nimg": options.nimg,
        "seeds": options.seeds,
        "train_cpu_s": [cpu_s for _, cpu_s in found],
        "bits_per_dim": table,
        "bound_likelihood_less_quality": [
            gap_B.mean().item(),
            gap_B.std().item() / math.sqrt(TEST),
        ],
        "best_of_each": dict(zip(OBJECTIVES, best, strict=True)),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
