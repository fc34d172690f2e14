"""How often does each metric's interval hold the expected value, of 500 draws from known distributions?

    .venv/bin/python -m tests.benchmarks._intervals [--draws 500] [--rows 500 2000 10000] [--only fd ...]

The reference is drawn once and stays; samples are drawn anew, and the expected value is the mean over the
draws. ``near`` are samples of the reference's distribution, ``far`` another one, ``modes`` a mixture of ten
modes of which the samples lack two. One line of JSON for each distribution, number of rows and metric: the
rate with its exact interval, and the mean width over that of plus and minus 1.96 standard deviations of the
draws. Results are appended to runs/bench/intervals.jsonl; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from genmod.metrics.chance import class_distance
from genmod.metrics.frechet import frechet_distances
from genmod.metrics.intervals import share, share_interval
from genmod.metrics.kernel import kernel_distance
from genmod.metrics.neighbours import neighbourhoods
from genmod.metrics.protocol import Interval
from genmod.metrics.two_sample import two_sample_accuracy
from genmod.rng import rng_for

DIMS, CLASSES, NEIGHBOURS = 16, 10, 5
OUT = Path("runs/bench/intervals.jsonl")
QUICK_ARGS = ["--draws", "3", "--rows", "60", "--out", "/dev/null"]

Measured = dict[str, tuple[float, Interval]]


def _normal(purpose: str, rows: int, draw: int) -> Tensor:
    """Rows with variances that fall as 1 / place."""
    rng = rng_for(draw, f"intervals/{purpose}", range(rows))
    spread_D = torch.arange(1, DIMS + 1, dtype=torch.float64).rsqrt()
    return rng.normal(DIMS, dtype=torch.float64) * spread_D


def _mixture(purpose: str, rows: int, draw: int, modes: int) -> Tensor:
    centre_KD = 2 * rng_for(0, "intervals/centres", range(10)).normal(DIMS, dtype=torch.float64)
    mode_N = rng_for(draw, f"intervals/{purpose}/mode", range(rows)).integers(modes, 1)[:, 0]
    return centre_KD[mode_N] + _normal(purpose, rows, draw) / 2


DISTRIBUTIONS: dict[str, tuple[Callable[[int], Tensor], Callable[[int, int], Tensor]]] = {
    "near": (lambda n: _normal("real", n, 0), lambda n, t: _normal("fake", n, t)),
    "far": (lambda n: _normal("real", n, 0), lambda n, t: 0.8 * _normal("fake", n, t) + 0.3),
    "modes": (
        lambda n: _mixture("real", n, 0, 10),
        lambda n, t: _mixture("fake", n, t, 8) * 1.05,
    ),
}
"""The reference by its number of rows; samples by theirs and the number of the draw."""


def _distances(fake_ND: Tensor, real_ND: Tensor) -> Measured:
    found = frechet_distances(fake_ND, real_ND, seed=0)
    return {"fd": found.fd, "fd_infinity": found.fd_infinity}


def _neighbours(fake_ND: Tensor, real_ND: Tensor) -> Measured:
    near = neighbourhoods(fake_ND, real_ND, NEIGHBOURS, seed=0)
    return {name: getattr(near, name) for name in near.__dataclass_fields__}


def _classes(fake_ND: Tensor, real_ND: Tensor) -> Measured:
    """Of a classifier that sees ten classes along the first axis, and one label by the second's sign."""
    edges = real_ND[:, 0].quantile(torch.arange(1, CLASSES, dtype=torch.float64) / CLASSES)
    fake_K, real_K = (
        torch.bucketize(rows_ND[:, 0].contiguous(), edges).bincount(minlength=CLASSES)
        for rows_ND in (fake_ND, real_ND)
    )
    return {
        "class_balance": class_distance(fake_K, real_K / real_K.sum(), seed=0),
        "label_accuracy": share(fake_ND[:, 1] > -1),
    }


METRICS: dict[str, Callable[[Tensor, Tensor], Measured]] = {
    "fd": _distances,
    "class_balance": _classes,
    "kid": lambda fake_ND, real_ND: {"kid": kernel_distance(fake_ND, real_ND)},
    "neighbours": _neighbours,
    "c2st": lambda fake_ND, real_ND: {"c2st": two_sample_accuracy(fake_ND, real_ND, seed=0)},
}


def rates(kind: str, distribution: str, rows: int, draws: int) -> list[dict[str, object]]:
    """One row for each metric of a kind."""
    real, fake = DISTRIBUTIONS[distribution]
    real_ND, start_s = real(rows), time.process_time()
    found = [METRICS[kind](fake(rows, draw), real_ND) for draw in range(draws)]
    cpu_s = time.process_time() - start_s
    result: list[dict[str, object]] = []
    for name in found[0]:
        values = torch.tensor([trial[name][0] for trial in found], dtype=torch.float64)
        intervals = [trial[name][1] for trial in found]
        held = sum(i.low <= float(values.mean()) <= i.high for i in intervals)
        bounds = share_interval(held, draws)
        width = sum(i.high - i.low for i in intervals) / draws
        result.append(
            {
                "kind": kind,
                "distribution": distribution,
                "rows": rows,
                "metric": name,
                "draws": draws,
                "held": held / draws,
                "held_from": bounds.low,
                "held_to": bounds.high,
                "mean": float(values.mean()),
                "std": float(values.std()),
                "relative_width": width / (3.92 * float(values.std())),
                "cpu_s": cpu_s,
            }
        )
    return result


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 2000, 10_000])
    parser.add_argument("--only", nargs="+", choices=list(METRICS), default=list(METRICS))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.is_file() else []
    keys = ("kind", "distribution", "rows", "draws")
    done = {tuple(json.loads(line)[key] for key in keys) for line in lines}
    for rows in options.rows:
        for kind in options.only:
            for distribution in DISTRIBUTIONS:
                if (kind, distribution, rows, options.draws) in done:
                    continue
                with options.out.open("a") as stream:
                    for row in rates(kind, distribution, rows, options.draws):
                        print(json.dumps(row), file=stream)
                        print(
                            f"{distribution:<6} {rows:>6} {row['metric']:<17} {row['held']:.3f} "
                            f"({row['held_from']:.3f} to {row['held_to']:.3f}), width "
                            f"{row['relative_width']:.2f}, {row['cpu_s']:.0f} s",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
