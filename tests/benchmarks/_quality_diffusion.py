"""Diffusion's quality at equal CPU time on Fashion-MNIST: ours against diffusers', both searched alike.

    .venv/bin/python -m tests.benchmarks._quality_diffusion [--seeds 3] [--minutes 5]   the comparison
    .venv/bin/python -m tests.benchmarks._quality_diffusion --search                how SETTINGS were found

``make bench`` leaves it out, for it takes 2 x seeds x minutes and more. Protocol: one core; the CPU time is
training's alone, and the peer gets the seconds that ours took; 60,000 training images, none of their labels
used; 1,000 draws against all 10,000 test images by the Frechet distance and against 1,000 of them by the
coverage, in the features of a classifier that is fitted to the training images and never sees a model.

The search is the same for both: from one start, a size, a rate, a noise (ours: ln sigma's mean and spread;
the peer's: schedule and what is predicted), a half-life of the average, then size and rate again, one after
the other, each by the Frechet distance of 500 draws of 20 calls to 10,000 *training* images after 1 CPU
minute.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genmod import units
from genmod.interface.model import DataStats, GenerativeModel
from genmod.interface.registry import ModelConfig
from genmod.training import ema
from genmod.training.loop import Plan, train
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.world import SingleProcess
from tests.benchmarks import _equal_time as shared
from tests.benchmarks._data_sets import pin
from tests.benchmarks._equal_time import GREY, Judge, batches, drawn, fitting, images, interval

BATCH, PROBE_NIMG, HELD_OUT = 64, 2_560, 10_000
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
    "peer": {"unshuffle": 2, "widths": [32, 64], "attention": False, "lr": 0.004,
             "schedule": "squaredcos_cap_v2", "prediction": "v_prediction", "ema": 0.03},
}  # fmt: skip
"""What the search found; its table is in quality-diffusion.md."""
SAMPLERS: dict[str, list[tuple[str, int]]] = {
    "ours": [("dpm_solver", 20), ("dpm_solver", 50), ("dpm_solver", 10), ("dpm_solver", 5)],
    "peer": [
        ("dpm_solver", 20),
        ("dpm_solver", 50),
        ("ddim", 50),
        ("dpm_solver", 10),
        ("ddim", 20),
    ],
}
"""Solver and calls of the net, all of them by the first seed; by the others as many as ``ALWAYS`` says."""
ALWAYS = {"ours": 2, "peer": 3}
MARKS = (0.5, 1)
QUICK = shared.QUICK | {
    "BATCH": 8, "PROBE_NIMG": 16,
    "SAMPLERS": {side: [("dpm_solver", 2)] for side in ("ours", "peer")}, "RATIOS": {},
}  # fmt: skip
QUICK_ARGS = ["--seeds", "1", "--minutes", "0.005", "--draws", "100"]
"""Shares of the way at which 20 calls are judged; the rate follows the whole of it."""
WHAT = ("fd", "coverage", "recall", "cpu_min", "nimg")
RATIOS = {
    "20 calls to the peer's 20": ("dpm_solver-20", "dpm_solver-20"),
    "20 calls to the peer's 50 of DPM-Solver++": ("dpm_solver-20", "dpm_solver-50"),
    "20 calls to the peer's 50 of DDIM": ("dpm_solver-20", "ddim-50"),
}


class _Averages:
    """What training's loop takes for a validation: averages after each step, copies at shares of the way."""

    def __init__(self, model: GenerativeModel, job: dict[str, Any], nimg: int) -> None:
        self.configs = {s: _train_config(job, nimg, int(s * nimg)) for s in job["ema"]}
        self.averages = {s: ema.averaged(model) for s in job["ema"]}
        self.marks = {-(-int(m * nimg) // BATCH) * BATCH: m for m in job["marks"]}
        self.kept: dict[str, GenerativeModel] = {}

    def evaluate(self, model: GenerativeModel, nimg: int, *_: object) -> dict[str, float]:
        for share, average in self.averages.items():
            ema.Average(average, model).update(ema.decay_at(self.configs[share], nimg))
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


def _ours(train_NCHW: Tensor, job: dict[str, Any]) -> dict[str, Any]:
    """Train; a short probe says how many images fit in the CPU time. Then draw."""
    x_NCHW = units.to_network(train_NCHW)
    stats = DataStats(mean=(float(x_NCHW.mean()),), std=(float(x_NCHW.std()),))
    net = {
        "unshuffle": job["unshuffle"], "widths": job["widths"], "blocks": 1, "embedding": 128,
        "attention": [len(job["widths"]) - 1] if job["attention"] else [],
        "noise": {"P_mean": job["mean"], "P_std": job["std"], "uniform_share": 0.0},
    }  # fmt: skip
    how = ModelConfig(family="diffusion", net=net, spec=GREY, stats=stats)

    def run(nimg: int) -> tuple[_Averages, float]:
        model = how.build(job["seed"])
        looks = _Averages(model, job, nimg)
        plan = Plan(_train_config(job, nimg, 0), job["seed"], validation=looks)  # type: ignore[arg-type]
        start_s = time.process_time()
        train(
            model,
            lambda start: batches(train_NCHW, job["seed"], BATCH, start),
            SingleProcess(),
            plan,
        )  # type: ignore[arg-type,return-value]
        return looks, time.process_time() - start_s

    nimg = fitting(lambda few: run(few)[1], PROBE_NIMG, job["cpu_s"], BATCH)
    looks, taken_s = run(nimg)
    found: dict[str, Any] = {"nimg": nimg, "cpu_s": taken_s}
    for key, model in looks.kept.items():
        for solver, steps in job["samplers"] if key.startswith("1/") else job["samplers"][:1]:
            how = {"solver": solver, "steps": steps}
            found[f"{key}/{solver}/{steps}"] = drawn(model, how, job["seed"], job["draws"])
    return found


def _peer(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    worker, out = Path(__file__).with_name("_quality_diffusion_peer.py"), folder / "peer.npz"
    (folder / "job.json").write_text(json.dumps(job | {"out": str(out)}))
    words = [sys.executable, str(worker), str(folder), str(folder / "job.json")]
    subprocess.run(words, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return {name: torch.as_tensor(value) for name, value in np.load(out).items()}


def _trained(side: str, data: Tensor, folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    return _ours(data, job) if side == "ours" else _peer(folder, job)


def _drawn_keys(made: dict[str, Any]) -> list[str]:
    return [key for key in made if "/" in key]


def search(side: str, judge: Judge, data: Tensor, folder: Path, cpu_s: float) -> dict[str, Any]:
    """One side's best settings, by one choice after the other."""
    best: dict[str, Any] = {**SIZES[0], **RATES[1], **NOISES[side][0], **EMAS[1]}
    known: dict[str, float] = {}
    fixed = {"seed": 100, "cpu_s": cpu_s, "marks": [1], "draws": 500}
    for options in (SIZES, RATES, NOISES[side], EMAS, SIZES, RATES):
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


def compare(
    judge: Judge, data: Tensor, folder: Path, seeds: range, cpu_s: float, draws: int
) -> list[dict]:
    """Ours, then the peer for as many CPU seconds, seed by seed; a row for each set of draws."""
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        taken_s = cpu_s
        for side in ("ours", "peer"):
            settings = SETTINGS[side] | {"ema": [SETTINGS[side]["ema"]]}
            job = settings | {"seed": seed, "cpu_s": taken_s, "marks": MARKS, "draws": draws,
                              "samplers": SAMPLERS[side][: ALWAYS[side] if seed else None]}  # fmt: skip
            made = _trained(side, data, folder, job)
            taken_s = max(taken_s, float(made["cpu_s"]))
            for key in _drawn_keys(made):
                mark, _, solver, calls = key.split("/")
                row = {"side": side, "seed": seed, "cpu_min": float(mark) * float(made["cpu_s"]) / 60,
                       "mark": mark, "sampler": f"{solver}-{calls}",
                       "nimg": int(float(mark) * int(made["nimg"])),
                       **judge(made[key])}  # fmt: skip
                print(json.dumps(row), flush=True)
                rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Curves against CPU minutes and against calls, and the ratios of FD, each with its interval."""

    def of(side: str, what: str, mark: str, sampler: str) -> list[float]:
        return [
            r[what] for r in rows if (r["side"], r["mark"], r["sampler"]) == (side, mark, sampler)
        ]

    def ratios(mine: str, theirs: str) -> list[float]:
        pairs = zip(of("ours", "fd", "1", mine), of("peer", "fd", "1", theirs), strict=True)
        return interval([a / b for a, b in pairs])

    keys = sorted({(r["side"], r["mark"], r["sampler"]) for r in rows})
    ends = of("ours", "fd", "1", "-".join(map(str, SAMPLERS["ours"][0])))
    return {
        "table": {
            " ".join(k): {what: interval(of(k[0], what, *k[1:])) for what in WHAT} for k in keys
        },
        "ratios": {name: ratios(*both) for name, both in RATIOS.items()},
        "control, our seeds with each other": [a / b for a, b in pairwise(ends)],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Lines as they come, then a summary as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--draws", type=int, default=1_000)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--only", choices=("ours", "peer"))
    wanted = parser.parse_args(argv)
    torch.set_num_threads(1)
    pin()
    data = images("train")
    judge = Judge(data, data[-HELD_OUT:] if wanted.search else images("t10k"))
    print(f"features {judge.extractor.label}; floor {judge.distance(data[:1_000]):.3f}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "train.npy", data.numpy())
        if wanted.search:
            for side in (wanted.only,) if wanted.only else ("ours", "peer"):
                search(side, judge, data, folder, SEARCH_S)
            return
        seeds = range(wanted.first, wanted.first + wanted.seeds)
        rows = compare(judge, data, folder, seeds, 60 * wanted.minutes, wanted.draws)
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    main()
