"""``genmod selftest density``: all checks of log p against known densities.

Checks of estimators that several families share are files of this folder, each with ``checks(seed)``. Checks
of one family are its :meth:`~genmod.interface.model.GenerativeModel.density_checks`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from genmod.interface.estimator_check import EstimatorCheck
from genmod.interface.registry import families, family
from genmod.selftest import annealing, latents, probability_flow
from genmod.selftest.training import train_briefly

Checks = Callable[[int], Iterator[EstimatorCheck]]
"""Yields check results one by one, given a seed."""

SHARED_CHECKS: tuple[Checks, ...] = (latents.checks, annealing.checks, probability_flow.checks)
"""Checks of estimators that belong to no single family."""


def all_checks() -> tuple[Checks, ...]:
    """The shared checks, then those of each family."""
    of_families = (partial(family(name).density_checks, train=train_briefly) for name in families())
    return (*SHARED_CHECKS, *of_families)


def run_checks(groups: Sequence[Checks], seed: int = 0) -> Iterator[EstimatorCheck]:
    """Run groups of checks in order; each result contains the seconds that it took."""
    for checks in groups:
        start_s = time.monotonic()
        for check in checks(seed):
            now_s = time.monotonic()
            yield replace(check, seconds=round(now_s - start_s, 2))
            start_s = time.monotonic()
