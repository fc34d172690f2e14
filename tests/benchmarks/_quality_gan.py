"""GAN quality at equal CPU time on Fashion-MNIST: ours against a plain DCGAN, by several seeds.

    .venv/bin/python -m tests.benchmarks._quality_gan [--seeds 3] [--minutes 10]

``make bench`` leaves it out, for it takes 2 x seeds x minutes and more. Protocol: one core; the CPU time is
training's alone; 60,000 training images, no labels on either side; 2,000 samples in the features of a
classifier that is fitted to the training images and never sees a model: Frechet distance to all 10,000 test
images; precision, recall, density and coverage with 5 neighbours against 2,000 of them, as many as samples.
Drawn a quarter, half, three quarters and all of the way; the peer gets the CPU time that ours took. Our
learning rate and penalty follow the whole budget, so an early point is not the best that its time could have
given. Ours are the averaged weights; the peer gets the better of its own and their average at each point.
Our net, batch, rate and penalty were searched for by seven runs of two minutes; the peer has published ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genmod import units
from genmod.interface.batch import Batch
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.metrics.features import Extractor, fit_extractor
from genmod.metrics.frechet import feature_moments, frechet
from genmod.metrics.neighbours import neighbourhoods
from genmod.models.gan import GanSample, Model
from genmod.rng import rng_for
from genmod.training.loop import Plan, train
from genmod.training.plan import TrainConfig
from genmod.world import SingleProcess
from tests.benchmarks import _equal_time as shared
from tests.benchmarks._data_sets import pin

SPEC = ImageSpec(channels=1, height=28, width=28)
NET: dict[str, Any] = {
    "generator": {"widths": [32, 96], "blocks": 1, "patch": 2},
    "discriminator": {"widths": [64], "blocks": 2, "patch": 4},
    "penalty": "r1r2",
    "penalty_every": 4,
}
GAMMA = (2.0, 1.0)
OPTIM = {
    "lr": 1.5e-3, "betas": [0.0, 0.98], "warmup_nimg": 1_000, "floor": 0.05, "clip_norm": None
}  # fmt: skip
BATCH, HALFLIFE_SHARE = 16, 0.05
DRAWS, POINTS, PROBE_NIMG, NEIGHBOURS = 2_000, 4, 6_400, 5
HELD_OUT = 10_000
AVERAGES = {"halflives_nimg": [1_000, 4_480, 16_000]}
SEARCHED: tuple[dict[str, Any], ...] = (
    {"batch": 64},
    {"batch": 16},
    {"batch": 16, "lr": 5e-4},
    {"batch": 32, "lr": 5e-4},
    {"batch": 16, "lr": 5e-4, "floor": 0.05},
    {"batch": 8, "lr": 5e-4, "floor": 0.05},
)
"""What the peer is tried with, each with averages of these half-lives."""
TUNED: dict[str, Any] = {"batch": 16, "lr": 5e-4}
"""The best of the first three; the others were not reached."""
QUICK = shared.QUICK | {"DRAWS": 100, "POINTS": 1, "PROBE_NIMG": 32, "HELD_OUT": 100}
QUICK_ARGS = ["--seeds", "1", "--minutes", "0.01"]
MEASURES = ("fd", "coverage", "recall", "density", "precision")


def _batches(pixels_NCHW: Tensor, seed: int, start: int) -> Iterator[Batch]:
    while True:
        index_B = torch.arange(start, start + BATCH)
        row_B = rng_for(seed, "bench/row", index_B).integers(len(pixels_NCHW), 1)[:, 0]
        yield Batch(pixels_NCHW[row_B], None, index_B)
        start += BATCH


@dataclass
class _Points:
    """Draws samples on the way, in the place of validation; what it takes is not training's."""

    seed: int
    start_s: float
    drawing_s: float = 0.0
    found: list[dict[str, Any]] = field(default_factory=list)

    def evaluate(self, model: Model, nimg: int, *_: object) -> dict[str, float]:
        """Samples of the averaged weights."""
        now_s = time.process_time()
        pieces = [
            model.sample(None, rng_for(self.seed, "bench/draw", range(i, i + 100)), GanSample())
            for i in range(0, DRAWS, 100)
        ]
        pixels = units.to_pixels(torch.cat(pieces))
        cpu_s = now_s - self.start_s - self.drawing_s
        self.found.append({"pixels": pixels, "nimg": nimg, "cpu_s": cpu_s})
        self.drawing_s += time.process_time() - now_s
        return {}


def ours(pixels_NCHW: Tensor, seed: int, cpu_s: float) -> list[dict[str, Any]]:
    """Samples along one run; a short probe says how many images fit into the time."""

    def run(nimg: int, points: int) -> tuple[_Points, float]:
        config = TrainConfig.model_validate({
            "nimg": nimg, "batch": BATCH, "log_every_nimg": 6_400, "optim": OPTIM,
            "ema_halflife_nimg": int(HALFLIFE_SHARE * nimg), "ema_rampup": 0.1,
            "validate_every_nimg": nimg // points if points else None,
        })  # fmt: skip
        gamma = {"base": GAMMA[0], "final": GAMMA[1], "nimg": nimg}
        stats = DataStats(mean=(-0.43,), std=(0.7,))
        net = NET | {"gamma": gamma}
        model = ModelConfig(family="gan", net=net, spec=SPEC, stats=stats).build(seed)
        start_s = time.process_time()
        drawn = _Points(seed, start_s)

        def batches(start: int) -> Iterator[Batch]:
            return _batches(pixels_NCHW, seed, start)

        train(model, batches, SingleProcess(), Plan(config, seed, validation=drawn))  # type: ignore[arg-type]
        return drawn, time.process_time() - start_s

    _, probe_s = run(PROBE_NIMG, 0)
    step = POINTS * BATCH
    nimg = int(cpu_s / (probe_s / PROBE_NIMG)) // step * step
    return run(nimg, POINTS)[0].found


def peer(
    folder: Path, seed: int, cpu_s: float, points: int, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The DCGAN's samples along one run, of each kind of weights."""
    worker = Path(__file__).with_name("_quality_gan_peer.py")
    wanted = [str(seed), str(cpu_s), str(points), json.dumps(dict(settings))]
    subprocess.run([sys.executable, str(worker), str(folder), *wanted], check=True)
    made = np.load(folder / f"gan-peer-{seed}.npz")
    kinds = [name.removesuffix("@1") for name in made if name.endswith("@1")]
    return [
        {"pixels": torch.from_numpy(made[f"{weights}@{n}"]), "nimg": int(made[f"nimg@{n}"]),
         "cpu_s": float(made[f"cpu_s@{n}"]), "weights": weights}
        for n in range(1, points + 1) for weights in kinds if weights not in ("nimg", "cpu_s")
    ]  # fmt: skip


@dataclass(frozen=True)
class Judge:
    """Compares samples with test images."""

    extractor: Extractor
    test_ND: Tensor

    def __call__(self, pixels_NCHW: Tensor) -> dict[str, float]:
        """Each of ``MEASURES``."""
        fake_ND = self.extractor.extract(pixels_NCHW).features_ND
        near = neighbourhoods(fake_ND, self.test_ND[: len(fake_ND)], NEIGHBOURS, 0)
        shares = {name: getattr(near, name)[0] for name in MEASURES[1:]}
        return {"fd": frechet(feature_moments(self.test_ND), feature_moments(fake_ND)), **shares}


def judge(held_out: bool = False) -> tuple[Judge, Tensor]:
    """The judge and the images to train on; ``held_out``: it compares with the last training images."""
    pixels_NCHW, spec = shared.images("train"), SPEC.model_copy(update={"classes": 10})
    extractor = fit_extractor(shared.FEATURES, spec, pixels_NCHW, shared.labels("train"), 0)
    other_NCHW = pixels_NCHW[-HELD_OUT:] if held_out else shared.images("t10k")
    mine_NCHW = pixels_NCHW[:-HELD_OUT] if held_out else pixels_NCHW
    return Judge(extractor, extractor.extract(other_NCHW).features_ND), mine_NCHW


def curve(judge: Judge, made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each point judged; where there are two kinds of weights, the better."""
    rows = [
        {name: value for name, value in point.items() if name != "pixels"} | judge(point["pixels"])
        for point in made
    ]
    best: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["nimg"] not in best or row["fd"] < best[row["nimg"]]["fd"]:
            best[row["nimg"]] = row
    return list(best.values())


def search(seed: int, cpu_s: float) -> None:
    """The peer with each of ``SEARCHED``, judged by training images that it does not see; a line each."""
    judged, pixels_NCHW = judge(held_out=True)
    with tempfile.TemporaryDirectory() as name:
        np.savez(Path(name) / "data.npz", train=pixels_NCHW.numpy())
        for settings in SEARCHED:
            for point in peer(Path(name), seed, cpu_s, 1, settings | AVERAGES):
                row = {key: value for key, value in point.items() if key != "pixels"}
                row |= judged(point["pixels"])
                print(settings, _told("peer", seed, row), flush=True)


def _told(side: str, seed: int, row: Mapping[str, Any]) -> str:
    values = ", ".join(f"{name} {row[name]:.3f}" for name in MEASURES)
    which = f" ({row['weights']})" if "weights" in row else ""
    return (
        f"{side} seed {seed} {row['cpu_s'] / 60:5.2f} min {row['nimg']:>7,} images: {values}{which}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """One line a seed, side and point, then the ratios at the end with their spread, as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument(
        "--search", action="store_true", help="tune the peer for so many minutes a run"
    )
    parser.add_argument("--tuned", action="store_true", help="compare with the tuned peer")
    wanted = parser.parse_args(argv)
    torch.set_num_threads(1)
    pin()
    if wanted.search:
        return search(100, 60 * wanted.minutes)
    judged, pixels_NCHW = judge()
    floor = judged(pixels_NCHW[:DRAWS])
    print(f"features {judged.extractor.label}, real images: {floor}", flush=True)
    ends: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "data.npz", train=pixels_NCHW.numpy())
        for seed in range(wanted.seeds):
            made = ours(pixels_NCHW, seed, 60 * wanted.minutes)
            theirs = peer(folder, seed, made[-1]["cpu_s"], POINTS, TUNED if wanted.tuned else {})
            for side, points in (("ours", made), ("peer", theirs)):
                rows = curve(judged, points)
                for row in rows:
                    print(_told(side, seed, row), flush=True)
                ends[side].append(rows[-1])
    print(json.dumps({name: _ratio(ends, name) for name in ("fd", "coverage")}, indent=1))


def _ratio(ends: Mapping[str, list[dict[str, Any]]], name: str) -> dict[str, object]:
    """Of both means, with the interval (95 %, Student, of the seeds' own ratios)."""
    ratios = [
        a[name] / b[name] if b[name] else float("nan")
        for a, b in zip(ends["ours"], ends["peer"], strict=True)
    ]
    half = float("nan")
    if len(ratios) in _STUDENT:
        half = _STUDENT[len(ratios)] * statistics.stdev(ratios) / len(ratios) ** 0.5
    return {"ratios": ratios, "mean": statistics.mean(ratios), "half_width_95": half}


_STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""The 97.5 % quantile of Student's t, by the number of seeds."""


if __name__ == "__main__":
    main()
