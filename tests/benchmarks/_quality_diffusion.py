"""Diffusion's quality at equal CPU time on Fashion-MNIST: ours against diffusers', both searched alike.

    .venv/bin/python -m tests.benchmarks._quality_diffusion [--seeds 3] [--minutes 5]   the comparison
    .venv/bin/python -m tests.benchmarks._quality_diffusion --search                how SETTINGS were found

``make bench`` leaves it out, for it takes 2 x seeds x minutes and more. Protocol: one core; the CPU time is
training's alone, and the peer gets the seconds that ours took; 60,000 training images, none of their labels
used; 1,000 draws against all 10,000 test images by the Frechet distance and against 1,000 of them by the
coverage, in the features of a classifier that is fitted to the training images and never sees a model.

The search is the same for both: from one start, a size, a rate, a noise (ours: ln sigma's mean and spread;
the peer's: schedule and what is predicted), a half-life of the average, one after the other, each by the
Frechet distance of 500 draws of 20 calls to 10,000 *training* images after 1 CPU minute.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from genmod import units
from genmod.data.batch import Batch
from genmod.manifest import ImageSpec
from genmod.metrics.features import Extractor, FeaturesConfig, fit
from genmod.metrics.frechet import frechet, moments
from genmod.metrics.neighbours import neighbourhoods
from genmod.models.base import DataStats, GenerativeModel, ModelConfig
from genmod.rng import rng_for
from genmod.training import ema
from genmod.training.loop import Plan, train
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.world import Alone
from tests.benchmarks import _quality as shared
from tests.benchmarks._data_sets import pin

GREY = ImageSpec(channels=1, height=28, width=28)
BATCH, PROBE_NIMG, CHUNK = 64, 2_560, 100
SEARCH_S = 60.0

SIZES: list[dict[str, Any]] = [
    {"unshuffle": 2, "widths": [32, 64], "attention": False},
    {"unshuffle": 2, "widths": [64, 128], "attention": False},
    {"unshuffle": 4, "widths": [128], "attention": False},
    {"unshuffle": 1, "widths": [16, 32, 64], "attention": False},
]
RATES: list[dict[str, Any]] = [{"lr": lr} for lr in (1e-3, 2e-3, 4e-3)]
NOISES: dict[str, list[dict[str, Any]]] = {
    "ours": [
        {"mean": mean, "std": std}
        for mean, std in ((-1.2, 1.2), (-0.8, 1.6), (-0.4, 1.3), (0.0, 1.6))
    ],
    "peer": [
        {"schedule": schedule, "prediction": prediction}
        for schedule in ("linear", "squaredcos_cap_v2")
        for prediction in ("epsilon", "v_prediction")
    ],
}
EMAS: list[dict[str, Any]] = [{"ema": share} for share in (0.01, 0.03, 0.1)]
"""Half-life as a share of the training's length."""
SETTINGS: dict[str, dict[str, Any]] = {
    "ours": {"unshuffle": 2, "widths": [32, 64], "attention": False, "lr": 0.004,
             "mean": -0.4, "std": 1.3, "ema": 0.1},
    "peer": {"unshuffle": 2, "widths": [64, 128], "attention": False, "lr": 0.002,
             "schedule": "squaredcos_cap_v2", "prediction": "v_prediction", "ema": 0.1},
}  # fmt: skip
"""What the search found; its table is in quality-diffusion.md beside this file."""
SAMPLERS: dict[str, list[tuple[str, int]]] = {
    "ours": [("dpm_solver", 20), ("dpm_solver", 50), ("dpm_solver", 10), ("dpm_solver", 35)],
    "peer": [("dpm_solver", 20), ("ddim", 50), ("dpm_solver", 10)],
}
"""Solver and calls of the net, all of them by the first seed; by the others the first two."""
WHAT = ("fd", "coverage", "cpu_min", "nimg")


class _Averages:
    """What training's loop takes for a validation: averages after each step, copies at shares of the way."""

    def __init__(self, model: GenerativeModel, job: dict[str, Any], nimg: int) -> None:
        self.configs = {s: _train_config(job, nimg, int(s * nimg)) for s in job["ema"]}
        self.averages = {s: ema.averaged(model) for s in job["ema"]}
        self.marks = {-(-int(m * nimg) // BATCH) * BATCH: m for m in job["marks"]}
        self.kept: dict[str, GenerativeModel] = {}

    def measure(self, model: GenerativeModel, nimg: int, *_: object) -> dict[str, float]:
        for share, average in self.averages.items():
            ema.update(average, model, ema.decay_at(self.configs[share], nimg))
            if nimg in self.marks:
                self.kept[f"{self.marks[nimg]:g}/{share:g}"] = copy.deepcopy(average)
        return {}


def _train_config(job: dict[str, Any], nimg: int, halflife_nimg: int) -> TrainConfig:
    return TrainConfig(
        nimg=nimg,
        batch=BATCH,
        log_every_nimg=nimg,
        validate_every_nimg=BATCH,
        ema_halflife_nimg=halflife_nimg,
        ema_rampup=0.1,
        optim=OptimConfig(lr=job["lr"], warmup_nimg=nimg // 40),
    )


def _batches(train_NCHW: Tensor, seed: int, start: int) -> Iterator[Batch]:
    while True:
        index_B = torch.arange(start, start + BATCH)
        row_B = rng_for(seed, "bench/row", index_B).integers(len(train_NCHW), 1)[:, 0]
        yield Batch(train_NCHW[row_B], None, index_B)
        start += BATCH


def _ours(train_NCHW: Tensor, job: dict[str, Any]) -> dict[str, Any]:
    """Train; a short probe says how many images fit in the CPU time. Then draw."""
    x_NCHW = units.to_network(train_NCHW)
    stats = DataStats(mean=(float(x_NCHW.mean()),), std=(float(x_NCHW.std()),))
    net = {
        "unshuffle": job["unshuffle"], "widths": job["widths"], "blocks": 1, "embedding": 128,
        "attention": [len(job["widths"]) - 1] if job["attention"] else [],
        "noise": {"mean": job["mean"], "std": job["std"], "uniform": 0.0},
    }  # fmt: skip
    how = ModelConfig(family="diffusion", net=net, spec=GREY, stats=stats)

    def run(nimg: int) -> tuple[_Averages, float]:
        model = how.build(job["seed"])
        looks = _Averages(model, job, nimg)
        plan = Plan(_train_config(job, nimg, 0), job["seed"], validation=looks)  # type: ignore[arg-type]
        begun_s = time.process_time()
        train(model, lambda start: _batches(train_NCHW, job["seed"], start), Alone(), plan)  # type: ignore[arg-type,return-value]
        return looks, time.process_time() - begun_s

    _, probe_s = run(PROBE_NIMG)
    nimg = int(job["cpu_s"] / (probe_s / PROBE_NIMG)) // BATCH * BATCH
    looks, taken_s = run(nimg)
    found: dict[str, Any] = {"nimg": nimg, "cpu_s": taken_s}
    for key, model in looks.kept.items():
        for solver, steps in job["samplers"] if key.startswith("1/") else job["samplers"][:1]:
            found[f"{key}/{solver}/{steps}"] = _drawn(model, solver, steps, job)
    return found


def _drawn(model: GenerativeModel, solver: str, steps: int, job: dict[str, Any]) -> Tensor:
    sample = model.Sample.model_validate({"solver": solver, "steps": steps})
    parts = [
        model.sample(None, rng_for(job["seed"], "bench/draw", range(i, i + CHUNK)), sample)
        for i in range(0, job["draws"], CHUNK)
    ]
    return units.to_pixels(torch.cat(parts))


def _peer(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    worker, out = Path(__file__).with_name("_quality_diffusion_peer.py"), folder / "peer.npz"
    (folder / "job.json").write_text(json.dumps(job | {"out": str(out)}))
    words = [sys.executable, str(worker), str(folder), str(folder / "job.json")]
    subprocess.run(words, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return {name: torch.as_tensor(value) for name, value in np.load(out).items()}


class Judge:
    """Distance to real rows, and the share of some of them that is covered, in one feature space."""

    def __init__(self, extractor: Extractor, real: Tensor) -> None:
        self.extractor = extractor
        self.real_ND = extractor.extract(real).features_ND
        self.moments = moments(self.real_ND)

    def distance(self, pixels: Tensor) -> float:
        return frechet(self.moments, moments(self.extractor.extract(pixels).features_ND))

    def coverage(self, pixels: Tensor) -> float:
        fake_ND = self.extractor.extract(pixels).features_ND
        return neighbourhoods(fake_ND, self.real_ND[: len(fake_ND)], 5, 2, 0).coverage[0]


def _trained(side: str, data: Tensor, folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    return _ours(data, job) if side == "ours" else _peer(folder, job)


def _drawn_keys(made: dict[str, Any]) -> list[str]:
    return [key for key in made if "/" in key]


def search(side: str, judge: Judge, data: Tensor, folder: Path, cpu_s: float) -> dict[str, Any]:
    """One side's best settings, by one choice after the other."""
    best: dict[str, Any] = {**SIZES[0], **RATES[1], **NOISES[side][0], **EMAS[1]}
    known: dict[str, float] = {}
    fixed = {"seed": 100, "cpu_s": cpu_s, "marks": [1], "draws": 500}
    for options in (SIZES, RATES, NOISES[side], EMAS):
        shares = [each["ema"] for each in EMAS] if options is EMAS else [best["ema"]]
        fresh = [best] if options is EMAS else [best | option for option in options]
        for settings in fresh:  # one training gives all averages
            if options is not EMAS and json.dumps(settings) in known:
                continue
            job = settings | fixed | {"ema": shares, "samplers": SAMPLERS[side][:1]}
            made = _trained(side, data, folder, job)
            for key in _drawn_keys(made):
                name = json.dumps(settings | {"ema": float(key.split("/")[1])})
                known[name] = judge.distance(made[key])
                seen = f"{int(made['nimg']):,} images in {float(made['cpu_s']):.0f} s"
                print(f"{side} {name}: FD {known[name]:.2f}; {seen}", flush=True)
        best = min((best | option for option in options), key=lambda one: known[json.dumps(one)])
    print(f"{side} best: {json.dumps(best)}", flush=True)
    return best


def compare(judge: Judge, data: Tensor, folder: Path, seeds: int, cpu_s: float) -> list[dict]:
    """Ours, then the peer for as many CPU seconds, seed by seed; a row for each set of draws."""
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        taken_s = cpu_s
        for side in ("ours", "peer"):
            settings = SETTINGS[side] | {"ema": [SETTINGS[side]["ema"]]}
            marks, samplers = ([1], 2) if seed else ([0.5, 1], None)
            job = settings | {"seed": seed, "cpu_s": taken_s, "marks": marks,
                              "draws": 1_000, "samplers": SAMPLERS[side][:samplers]}  # fmt: skip
            made = _trained(side, data, folder, job)
            taken_s = max(taken_s, float(made["cpu_s"]))
            for key in _drawn_keys(made):
                mark, _, solver, calls = key.split("/")
                row = {"side": side, "seed": seed, "cpu_min": float(mark) * float(made["cpu_s"]) / 60,
                       "mark": mark, "sampler": f"{solver}-{calls}", "nimg": int(made["nimg"]),
                       "fd": judge.distance(made[key]), "coverage": judge.coverage(made[key])}  # fmt: skip
                print(json.dumps(row), flush=True)
                rows.append(row)
    return rows


def _interval(values: list[float]) -> list[float]:
    """Mean and, of several, its 95 % limits by Student's t."""
    mean, n = statistics.mean(values), len(values)
    half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / n**0.5 if n > 1 else 0.0
    return [round(value, 3) for value in ((mean, mean - half, mean + half) if half else (mean,))]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Curves against CPU minutes and against calls, and the two ratios, each with its interval."""

    def of(side: str, what: str, mark: str, sampler: str) -> list[float]:
        return [
            r[what] for r in rows if (r["side"], r["mark"], r["sampler"]) == (side, mark, sampler)
        ]

    def ratios(mine: str, theirs: str) -> list[float]:
        pairs = zip(of("ours", "fd", "1", mine), of("peer", "fd", "1", theirs), strict=True)
        return _interval([a / b for a, b in pairs])

    keys = sorted({(r["side"], r["mark"], r["sampler"]) for r in rows})
    return {
        "table": {
            " ".join(k): {what: _interval(of(k[0], what, *k[1:])) for what in WHAT} for k in keys
        },
        "fd ratio at 20 calls": ratios("dpm_solver-20", "dpm_solver-20"),
        "fd ratio of 20 calls to 50 calls": ratios("dpm_solver-20", "ddim-50"),
    }


def main() -> None:
    """Lines as they come, then a summary as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--only", choices=("ours", "peer"))
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    pin()
    data, test = shared._images("train"), shared._images("t10k")
    spec = GREY.model_copy(update={"classes": 10})
    extractor = fit(FeaturesConfig(), spec, data, shared._labels("train"), 0)
    judge = Judge(extractor, data[-10_000:] if wanted.search else test)
    print(f"features {extractor.label}; floor {judge.distance(data[:1_000]):.3f}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "train.npy", data.numpy())
        if wanted.search:
            for side in (wanted.only,) if wanted.only else ("ours", "peer"):
                search(side, judge, data, folder, SEARCH_S)
            return
        rows = compare(judge, data, folder, wanted.seeds, 60 * wanted.minutes)
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    main()
