"""All benches of densities. A new one is ``checks(seed)`` in a file beside this, named in BENCHES."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from genmod.selftest import annealing, diffusions, flows, latents, probability_flow
from genmod.selftest.check import EstimatorCheck

BENCHES: tuple[Callable[[int], Iterator[EstimatorCheck]], ...] = (
    latents.checks,
    annealing.checks,
    probability_flow.checks,
    diffusions.checks,
    flows.checks,
)
"""Each makes its checks one by one, as they are ready, from a seed."""


def run_benches(
    benches: tuple[Callable[[int], Iterator[EstimatorCheck]], ...] = BENCHES, seed: int = 0
) -> Iterator[EstimatorCheck]:
    """The checks of all benches, with the seconds that each took."""
    for bench in benches:
        start_s = time.monotonic()
        for check in bench(seed):
            now_s = time.monotonic()
            yield replace(check, seconds=round(now_s - start_s, 2))
            start_s = time.monotonic()
