"""Quality at equal CPU time on Fashion-MNIST: our VAE against pythae's, by several seeds.

    GENMOD_BENCH_PEERS=... .venv/bin/python -m tests.benchmarks._quality [--seeds 3] [--minutes 5]

``make bench`` leaves it out, for it takes 2 x seeds x minutes and more. Protocol: one core; the CPU time is
training's alone; 60,000 training images made binary anew in each batch with the probability that a pixel's
value says, none of their labels used; 500 test images made binary once, log p by IWAE-500; 2,000 means of
p(x | z), z from the prior, against all 10,000 test images by the Frechet distance in the features of a
classifier that is fitted to the training images and never sees a model. The peers' environment is that of
the data benchmarks (tests/benchmarks/_data_sets.py) with pythae 0.1.2.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genmod import units
from genmod.data.batch import Batch
from genmod.manifest import ImageSpec
from genmod.metrics.features import Extractor, FeaturesConfig, fit
from genmod.metrics.frechet import frechet, moments
from genmod.models.base import DataStats, ModelConfig
from genmod.models.vae import Model, VAESample, VAEScore
from genmod.rng import rng_for
from genmod.training.loop import Plan, train
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.world import Alone
from tests.benchmarks._data_sets import FASHION, PEERS, pin

BINARY = ImageSpec(channels=1, height=28, width=28, levels=2)
NET = {"latents": 24, "unshuffle": 4, "widths": [64], "blocks": 1}
BATCH, LR, HALFLIFE_SHARE = 128, 3e-3, 0.02
DRAWS, SCORED, PROBE_NIMG = 2_000, 500, 12_800


def _images(name: str) -> Tensor:
    raw = gzip.decompress((FASHION / f"{name}-images-idx3-ubyte.gz").read_bytes())
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28).copy())


def _labels(name: str) -> Tensor:
    raw = gzip.decompress((FASHION / f"{name}-labels-idx1-ubyte.gz").read_bytes())
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=8).astype(np.int64))


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


def _train(train_NCHW: Tensor, seed: int, cpu_s: float) -> tuple[Model, int, float]:
    """Our model after so much CPU time, images seen, CPU seconds; a short probe says how many images fit."""

    def run(nimg: int) -> tuple[Model, float]:
        config = TrainConfig(
            nimg=nimg,
            batch=BATCH,
            log_every_nimg=nimg,
            ema_halflife_nimg=max(1, int(HALFLIFE_SHARE * nimg)),
            ema_rampup=0.1,
            optim=OptimConfig(lr=LR, weight_decay=0.01, clip_norm=300, warmup_nimg=nimg // 40),
        )
        stats = DataStats(mean=(-0.43,), std=(0.9,))
        model = ModelConfig(family="vae", net=NET, spec=BINARY, stats=stats).build(seed)
        begun_s = time.process_time()

        def batches(start: int) -> Iterator[Batch]:
            return _batches(train_NCHW, seed, start)

        state = train(model, batches, Alone(), Plan(config, seed))  # type: ignore[arg-type]
        assert isinstance(state.ema, Model)
        return state.ema.eval(), time.process_time() - begun_s

    _, probe_s = run(PROBE_NIMG)
    nimg = int(cpu_s / (probe_s / PROBE_NIMG)) // BATCH * BATCH
    model, taken_s = run(nimg)
    return model, nimg, taken_s


def _judged(extractor: Extractor, pixels_NCHW: Tensor, real: Tensor) -> float:
    fake_ND = extractor.extract(pixels_NCHW).features_ND
    return frechet(moments(extractor.extract(real).features_ND), moments(fake_ND))


def ours(data: dict[str, Tensor], seed: int, cpu_s: float) -> dict[str, object]:
    """Training, draws and scores of one seed."""
    model, nimg, taken_s = _train(data["train"], seed, cpu_s)
    mean = model.sample(None, rng_for(seed, "bench/draw", range(DRAWS)), VAESample(output="mean"))
    some = Batch(data["test_binary"] * 255, None, torch.arange(SCORED))
    how = VAEScore(k=500, chunk=25_000)
    scores = [
        model.log_prob(some.rows(slice(i, i + 50)), rng_for(seed, "score", range(i, i + 50)), how)
        for i in range(0, SCORED, 50)
    ]
    nats = torch.cat([score.nats_B for score in scores])
    return {"draws": units.to_pixels(mean), "nats": nats, "nimg": nimg, "cpu_s": taken_s}


def main() -> None:
    """One line a seed and side, then the ratio and difference with their spread, as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--only", choices=("ours", "peer"))
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    pin()
    cpu_s = 60 * wanted.minutes
    data = {"train": _images("train"), "test": _images("t10k")}
    index_B = torch.arange(SCORED)
    data["test_binary"] = _binary(data["test"][:SCORED], 0, "bench/test", index_B) // 255
    spec = ImageSpec(channels=1, height=28, width=28, classes=10)
    extractor = fit(FeaturesConfig(), spec, data["train"], _labels("train"), 0)
    half = data["test"].split(len(data["test"]) // 2)
    print(
        f"features {extractor.label}, floor {_judged(extractor, half[0], half[1]):.3f}", flush=True
    )
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "data.npz", **{name: t.numpy() for name, t in data.items()})
        for seed in range(wanted.seeds):
            for side in (wanted.only,) if wanted.only else ("ours", "peer"):
                if side == "ours":
                    made = ours(data, seed, cpu_s)
                else:
                    worker = Path(__file__).with_name("_quality_peers.py")
                    words = [os.environ[PEERS], str(worker), folder, str(seed), str(cpu_s)]
                    subprocess.run(words, check=True)
                    made = dict(np.load(Path(folder) / f"peer-{seed}.npz"))
                draws, nats = torch.as_tensor(made["draws"]), torch.as_tensor(made["nats"])
                row = _judged(extractor, draws, data["test"]), -float(nats.double().mean())
                found[side].append(row)
                print(f"{side} seed {seed}: FD {row[0]:.2f}, -log p {row[1]:.2f} nats, "
                      f"{int(made['nimg']):,} images", flush=True)  # fmt: skip
    if not wanted.only:
        print(json.dumps(_compared(found)))


def _compared(found: dict[str, list[tuple[float, float]]]) -> dict[str, object]:
    pairs = list(zip(found["ours"], found["peer"], strict=True))
    ratios, gains = [a[0] / b[0] for a, b in pairs], [b[1] - a[1] for a, b in pairs]
    return {
        "fd_ratio": statistics.mean(ratios), "fd_ratios": ratios,
        "nats_gained": statistics.mean(gains), "nats_gains": gains,
    }  # fmt: skip


if __name__ == "__main__":
    main()
