"""Clipped density and clipped coverage: shares of good samples.

Salvy et al. 2026, Enhanced generative model evaluation with clipped density and coverage (ICLR), sec. 4. Both
are linear in the share of good samples, which precision, density and coverage are not: a ball of an outlier
is no larger than the median ball, a sample counts at most once, and coverage is turned into the number
of real draws that would cover as much. Unlike in the paper, values are not cut at 1, because a model as good
as real images scores 1 on average, and more or less by chance.
Letters: N fake rows, M real rows.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from genmod.metrics.intervals import mean_interval
from genmod.metrics.protocol import Interval

MOST = 4.0
"""Largest clipped coverage, of samples that cover far more than real ones do."""


def clipped_density(balls_N: Tensor, k: int, real_share: float) -> tuple[float, Interval]:
    """Mean over fake rows of min(balls / k, 1), divided by that of real rows.

    Args:
        balls_N: for each fake row the real balls around it, with radii of at most their median.
        k: the ball of a row reaches to its k-th nearest row.
        real_share: the mean over real rows, of balls of other real rows.
    """
    return mean_interval((balls_N / k).clamp(max=1).to(torch.float64) / real_share, low=0.0)


def clipped_coverage(
    unscaled: float, interval: Interval, k: int, fakes: int, reals: int
) -> tuple[float, Interval]:
    """Number of real draws that would cover as well, divided by the number of samples.

    Args:
        unscaled: mean over real rows of min(fake rows in its ball / k, 1).
        interval: its interval, whose ends are scaled as the value is.
        k: the ball of a row reaches to its k-th nearest row.
        fakes: number of samples.
        reals: number of real rows.

    Returns:
        the value, at most :data:`MOST`, and its interval.
    """

    def scaled(value: float) -> float:
        low, high = 0, math.ceil(MOST * fakes)
        if expected_coverage(high, k, reals) <= value:
            return MOST
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if expected(middle) <= value else (low, middle)
        # Between two whole numbers of draws, along a line.
        below, above = expected(low), expected(high)
        return (low + (value - below) / (above - below)) / fakes

    expected = partial(expected_coverage, k=k, reals=reals)
    ends = {"low": scaled(interval.low), "high": scaled(interval.high)}
    return scaled(unscaled), interval.model_copy(update=ends)


def expected_coverage(draws: int, k: int, reals: int) -> float:
    """Unscaled clipped coverage of a number of draws from the real distribution, on average.

    The mass of the ball around a row to its k-th of M - 1 neighbours has the distribution Beta(k, M - k), so
    draws in it are beta-binomial (their Theorem 1).

    Args:
        draws: number of draws, at least 0.
        k: the ball of a row reaches to its k-th nearest row.
        reals: number of real rows M, more than k.
    """
    missing = 0.0
    for inside in range(min(k, draws + 1)):
        log_p = _log_beta(k + inside, reals - k + draws - inside) - _log_beta(k, reals - k)
        log_p += math.lgamma(draws + 1) - math.lgamma(inside + 1) - math.lgamma(draws - inside + 1)
        missing += (k - inside) / k * math.exp(log_p)
    return 1 - min(1.0, missing)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
