"""The VAE's quality at equal CPU time on Fashion-MNIST: ours against pythae's, by several seeds.

    GENMOD_BENCH_PEERS=... .venv/bin/python -m tests.benchmarks._quality [--seeds 3] [--minutes 5]
    GENMOD_BENCH_PEERS=... .venv/bin/python -m tests.benchmarks._quality --search    how SETTINGS were found

``make bench`` leaves it out, for it takes 2 x seeds x minutes and more. Protocol: one core; the CPU time is
training's alone, and the peer gets the seconds that ours took; 60,000 training images made binary again in
each batch with the probability that a pixel's value says, none of their labels used; 500 test images made
binary once, log p by IWAE-500; 2,000 means of p(x | z), z from the prior, against all 10,000 test images by
the Frechet distance in the features of a classifier that is fitted to the training images and never sees a
model, and against as many of them by coverage, recall and precision with 5 neighbours. Everything is judged
in the middle of training too, of the same run. The search is the same for both sides: trained on 50,000
training images for half a minute and judged by the others. The peers' environment is that of the data
benchmarks (tests/benchmarks/_data_sets.py) with pythae 0.1.2; results are in quality-vae.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genmod import units
from genmod.interface.batch import Batch
from genmod.interface.model import DataStats, GenerativeModel
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.metrics.features import Extractor, fit_extractor
from genmod.metrics.frechet import feature_moments, frechet
from genmod.metrics.neighbours import neighbourhoods
from genmod.models.vae import Model, VAEScore
from genmod.rng import rng_for
from genmod.training.loop import Plan, train
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.world import SingleProcess
from tests.benchmarks import _equal_time as shared
from tests.benchmarks._data_sets import PEERS, pin
from tests.benchmarks._equal_time import images, labels

BINARY = ImageSpec(channels=1, height=28, width=28, levels=2)
GREY = ImageSpec(channels=1, height=28, width=28, classes=10)
BATCH, HALFLIFE_SHARE = 128, 0.02
DRAWS, SCORED, PROBE_NIMG, HELD_OUT, NEIGHBOURS = 2_000, 500, 12_800, 10_000, 5
SEARCH_S, PARTICLES = 30.0, 500
SEARCH: dict[str, list[dict[str, Any]]] = {
    "ours": [
        {"lr": 3e-3, "latents": 24, "unshuffle": 4, "widths": [64]},
        {"lr": 3e-3, "latents": 24, "unshuffle": 4, "widths": [64], "prior_components": 64},
        {"lr": 1e-3, "latents": 24, "hidden": [512, 256]},
        {"lr": 1e-3, "latents": 24, "hidden": [512, 256], "prior_components": 64},
        {"lr": 2e-3, "latents": 16, "hidden": [512, 256], "prior_components": 64},
        {"lr": 4e-3, "latents": 16, "hidden": [512, 256], "prior_components": 128},
    ],
    "peer": [
        {"lr": lr, "latents": latents} for lr, latents in ((1e-3, 16), (2e-3, 16), (4e-3, 16))
    ],
}
QUICK = shared.QUICK | {"BATCH": 32, "DRAWS": 100, "SCORED": 50, "PROBE_NIMG": 256, "PARTICLES": 4}
QUICK_ARGS = ["--seeds", "1", "--minutes", "0.02"]
SETTINGS: dict[str, dict[str, Any]] = {
    "ours": {"lr": 4e-3, "latents": 16, "hidden": [512, 256], "prior_components": 128},
    "peer": {"lr": 2e-3, "latents": 16},
}


def _binary(pixels_BCHW: Tensor, seed: int, purpose: str, index_B: Tensor) -> Tensor:
    """0 or 255 with the probability that the value says."""
    u_BCHW = rng_for(seed, purpose, index_B).uniform(*pixels_BCHW.shape[1:])
    return ((u_BCHW * 255 < pixels_BCHW).to(torch.uint8)) * 255


def _batches(train_NCHW: Tensor, seed: int, start: int) -> Iterator[Batch]:
    while True:
        index_B = torch.arange(start, start + BATCH)
        row_B = rng_for(seed, "bench/row", index_B).integers(len(train_NCHW), 1)[:, 0]
        yield Batch(_binary(train_NCHW[row_B], seed, "bench/pixel", index_B), None, index_B)
        start += BATCH


class _Half:
    """What the loop takes for a validation: keeps the averaged weights of the middle."""

    kept: GenerativeModel | None = None

    def evaluate(self, model: GenerativeModel, *_: object) -> dict[str, float]:
        self.kept = self.kept or copy.deepcopy(model)
        return {}


def _train(
    train_NCHW: Tensor, seed: int, cpu_s: float, net: dict[str, Any]
) -> tuple[list[tuple[Model, int]], float]:
    """Our model half-way and after so much CPU time, with images seen; CPU seconds.

    The fastest of short probes says how many images fit.
    """
    net = dict(net)
    lr = net.pop("lr")

    def run(nimg: int) -> tuple[list[tuple[Model, int]], float]:
        half_nimg = nimg // 2 // BATCH * BATCH
        config = TrainConfig(
            nimg=nimg,
            batch=BATCH,
            log_every_nimg=nimg,
            validate_every_nimg=half_nimg,
            ema_halflife_nimg=max(1, int(HALFLIFE_SHARE * nimg)),
            ema_rampup=0.1,
            optim=OptimConfig(lr=lr, weight_decay=0.01, clip_norm=300, warmup_nimg=nimg // 40),
        )
        stats = DataStats(mean=(-0.43,), std=(0.9,))
        model = ModelConfig(family="vae", net=net, spec=BINARY, stats=stats).build(seed)
        half, start_s = _Half(), time.process_time()

        def batches(start: int) -> Iterator[Batch]:
            return _batches(train_NCHW, seed, start)

        plan = Plan(config, seed, validation=half)  # type: ignore[arg-type]
        state = train(model, batches, SingleProcess(), plan)  # type: ignore[arg-type]
        taken_s = time.process_time() - start_s
        assert isinstance(half.kept, Model)
        assert isinstance(state.ema, Model)
        return [(half.kept, half_nimg), (state.ema, nimg)], taken_s

    probe_s = min(run(PROBE_NIMG)[1] for _ in range(3))
    return run(int(cpu_s / (probe_s / PROBE_NIMG)) // BATCH * BATCH)


def ours(
    data: dict[str, Tensor], seed: int, cpu_s: float, net: dict[str, Any]
) -> list[dict[str, Any]]:
    """Training, draws and scores of one seed, half-way and at the end."""
    models, taken_s = _train(data["train"], seed, cpu_s, net)
    some = Batch(data["test_binary"] * 255, None, torch.arange(SCORED))
    how = VAEScore(k=PARTICLES, chunk=25_000)
    found: list[dict[str, Any]] = []
    for (model, nimg), share in zip(models, (0.5, 1.0), strict=True):
        with torch.no_grad():
            rng = rng_for(seed, "bench/draw", range(DRAWS))
            z_BZ = model.prior.draw(rng.fold("latent"), model.config.latents, torch.float32)
            draws = torch.cat([model.decode_latents(z, None) for z in z_BZ.split(200)])
        scores = [
            model.log_prob(
                some.rows(slice(i, i + 50)), rng_for(seed, "score", range(i, i + 50)), how
            )
            for i in range(0, SCORED, 50)
        ]
        nats = torch.cat([score.nats_B for score in scores])
        pixels = units.to_pixels(draws)
        found.append({"draws": pixels, "nats": nats, "nimg": nimg, "cpu_s": share * taken_s})
    return found


def _peer(folder: str, seed: int, cpu_s: float, net: dict[str, Any]) -> list[dict[str, Any]]:
    worker = Path(__file__).with_name("_quality_peers.py")
    words = [folder, str(seed), str(cpu_s), str(net["latents"]), str(net["lr"])]
    subprocess.run([os.environ[PEERS], str(worker), *words], check=True)
    return [dict(np.load(Path(folder) / f"peer-{seed}-{mark}.npz")) for mark in ("half", "end")]


class _Judge:
    """Features and the images to be compared with."""

    def __init__(self, extractor: Extractor, real_NCHW: Tensor) -> None:
        self.extractor = extractor
        self.real_ND = extractor.extract(real_NCHW).features_ND
        self.real = feature_moments(self.real_ND)

    def __call__(self, side: str, seed: int, made: dict[str, Any]) -> dict[str, Any]:
        fake_ND = self.extractor.extract(torch.as_tensor(made["draws"])).features_ND
        nats = -float(torch.as_tensor(made["nats"]).double().mean())
        cpu_min, nimg = round(float(made["cpu_s"]) / 60, 2), int(made["nimg"])
        fd = frechet(self.real, feature_moments(fake_ND))
        row = {"side": side, "seed": seed, "cpu_min": cpu_min, "nimg": nimg, "fd": fd, "nats": nats}
        near = neighbourhoods(fake_ND, self.real_ND[: len(fake_ND)], NEIGHBOURS, 0)
        row |= {name: getattr(near, name)[0] for name in ("coverage", "recall", "precision")}
        print(json.dumps(row), flush=True)
        return row


def main(argv: Sequence[str] | None = None) -> None:
    """One line a seed, side and mark, then ratio and difference with their spread, as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--search", action="store_true")
    wanted = parser.parse_args(argv)
    torch.set_num_threads(1)
    pin()
    train_NCHW, test_NCHW = images("train"), images("t10k")
    extractor = fit_extractor(shared.FEATURES, GREY, train_NCHW, labels("train"), 0)
    if wanted.search:
        train_NCHW, test_NCHW = train_NCHW[:-HELD_OUT], train_NCHW[-HELD_OUT:]
    test_binary = _binary(test_NCHW[:SCORED], 0, "bench/test", torch.arange(SCORED)) // 255
    data = {"train": train_NCHW, "test_binary": test_binary}
    judge, halves = _Judge(extractor, test_NCHW), test_NCHW.split(len(test_NCHW) // 2)
    floor = frechet(*(feature_moments(extractor.extract(half).features_ND) for half in halves))
    print(f"features {extractor.label}, floor {floor:.3f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "data.npz", **{name: t.numpy() for name, t in data.items()})
        if wanted.search:
            for net in SEARCH["ours"]:
                print(net, flush=True)
                judge("ours", 0, ours(data, 0, SEARCH_S, net)[1])
            for net in SEARCH["peer"]:
                print(net, flush=True)
                judge("peer", 0, _peer(folder, 0, SEARCH_S, net)[1])
            return
        pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for seed in range(wanted.first, wanted.first + wanted.seeds):
            mine = ours(data, seed, 60 * wanted.minutes, SETTINGS["ours"])
            rows = [judge("ours", seed, made) for made in mine]
            if PEERS not in os.environ:
                print(f"peer not installed (see {PEERS})", flush=True)
                continue
            theirs = _peer(folder, seed, float(mine[1]["cpu_s"]), SETTINGS["peer"])
            pairs.append((rows[1], [judge("peer", seed, made) for made in theirs][1]))
    if pairs:
        print(json.dumps(_compared(pairs)))


def _compared(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    ratios, gains = [a["fd"] / b["fd"] for a, b in pairs], [b["nats"] - a["nats"] for a, b in pairs]
    return {
        "fd_ratio": statistics.mean(ratios), "fd_ratios": ratios,
        "nats_gained": statistics.mean(gains), "nats_gains": gains,
    }  # fmt: skip


if __name__ == "__main__":
    main()
