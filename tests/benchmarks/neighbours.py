"""Time and memory of the metrics whose cost grows with the square of the rows, or of the features.

Neighbours (precision, recall, density, coverage, the clipped ones) and the two-sample test of samples against
as many real rows, on one core, each case in a process of its own. Rows are normal; half of the features of
samples are shifted by 0.1. The goal is 4 GB for 50,000 x 50,000 rows.

With 2,048 features that many rows take about an hour, an estimate, and run by name:
``python -m tests.benchmarks.neighbours 50000 2048``. Of their memory the first blocks of each step were
measured: 1.9 GB of inputs, 2.5 GB with the neighbours, 3.6 GB with the two-sample test. The time of
neighbours grows with rows squared times features, that of the test with rows times features squared.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from genmod.metrics.neighbours import neighbourhoods
from genmod.metrics.two_sample import two_sample_accuracy
from genmod.rng import rng_for

CASES = ((50_000, 64), (6_250, 2_048))
"""Rows of each side, and features."""
GOAL_GB = 4.0
K = 5
QUICK = {"CASES": ((300, 16),)}


def _features(side: str, rows: int, features: int) -> torch.Tensor:
    return rng_for(0, f"neighbours/{side}", range(rows)).normal(features, dtype=torch.float64)


def _cpu_s(work: Callable[[], object]) -> float:
    start_s = time.process_time()
    work()
    return time.process_time() - start_s


def measure(rows: int, features: int) -> dict[str, float]:
    """CPU seconds of both metrics in this process, and its peak memory after each."""
    torch.set_num_threads(1)
    real_ND, fake_ND = (_features(side, rows, features) for side in ("real", "fake"))
    fake_ND[:, ::2] += 0.1
    found: dict[str, float] = {"inputs_gb": _peak_gb()}
    found["neighbours_s"] = _cpu_s(lambda: neighbourhoods(fake_ND, real_ND, K, seed=0))
    found["neighbours_gb"] = _peak_gb()
    found["c2st_s"] = _cpu_s(lambda: two_sample_accuracy(fake_ND, real_ND, seed=0))
    return found | {"peak_gb": _peak_gb()}


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def bench() -> list[dict]:
    """Peak memory of each case against the goal, with the times."""
    found: list[dict] = []
    for rows, features in CASES:
        words = [sys.executable, "-m", "tests.benchmarks.neighbours", str(rows), str(features)]
        output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        case = json.loads(output)
        found.append(
            {
                "name": f"neighbours/{rows} x {rows} of {features} features",
                "unit": "GB at most",
                "ours": case["peak_gb"],
                **case,
                "peer": GOAL_GB,
                "peer_name": "goal",
                "ratio": case["peak_gb"] / GOAL_GB,
            }
        )
    return found


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:]))))
