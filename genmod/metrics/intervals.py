"""Intervals that keep their level: shares, means, and statistics with a standard error.

An interval is about the expected value of its statistic at this number of rows, over new draws of the samples
with the reference fixed. It ignores that samples of a model are often dealt out evenly over classes, which
makes it slightly wide. `tests/benchmarks/intervals.md` lists how often each metric's interval is right.
Letters: N rows.
"""

from __future__ import annotations

import math

from scipy.special import betaincinv, gammaincinv, stdtrit
from torch import Tensor

from genmod.metrics.protocol import LEVEL, Interval, Z


def t_quantile(freedom: float) -> float:
    """Half width of an interval of :data:`LEVEL` in standard errors with ``freedom`` degrees of freedom.

    >>> round(t_quantile(12), 3)
    2.179
    """
    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def symmetric_interval(
    value: float,
    stderr: float,
    method: str,
    freedom: float | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """``value`` plus and minus a quantile times its standard error.

    Args:
        value: the statistic.
        stderr: its standard error.
        method: how the standard error was estimated.
        freedom: degrees of freedom of the standard error; a normal interval if not given.
        bounds: smallest and largest possible value, which limit the interval.
    """
    low, high = bounds
    half_width = stderr * (Z if freedom is None else t_quantile(freedom))
    return Interval(
        low=max(low, value - half_width),
        high=min(high, value + half_width),
        level=LEVEL,
        method=f"{'normal' if freedom is None else 't'}, {method}",
    )


def mean_interval(
    value_N: Tensor, low: float = -math.inf, high: float = math.inf
) -> tuple[float, Interval]:
    """Mean of at least two independent rows, with Student's interval.

    Args:
        value_N: one number for each row.
        low: smallest possible mean.
        high: largest possible mean.
    """
    n, mean = len(value_N), float(value_N.mean())
    assert n > 1, "a single row has no spread"
    stderr = float(value_N.std()) / math.sqrt(n)
    return mean, symmetric_interval(mean, stderr, "independent rows", n - 1, (low, high))


def share_interval(hits: float, rows: float) -> Interval:
    """Exact interval of a probability: Clopper and Pearson 1934, The use of confidence limits, sec. 3.

    The true probability is inside with at least the stated level, for every probability and number of rows.

    Args:
        hits: number of hits; need not be whole for correlated rows, see :func:`repeats`.
        rows: number of rows.
    """
    tail = (1 - LEVEL) / 2
    low = float(betaincinv(hits, rows - hits + 1, tail)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, rows - hits, 1 - tail)) if hits < rows else 1.0
    return Interval(low=low, high=high, level=LEVEL, method="exact, Clopper and Pearson")


def share(hits_N: Tensor) -> tuple[float, Interval]:
    """Share of rows that hit, with its exact interval for independent rows."""
    hits = float(hits_N.sum())
    return hits / len(hits_N), share_interval(hits, len(hits_N))


def poisson_bounds(count: float) -> tuple[float, float]:
    """Exact interval of the mean of a Poisson count: Garwood 1936, Fiducial limits, Eq. 3.

    >>> [round(bound, 2) for bound in poisson_bounds(0)]
    [0.0, 3.69]
    """
    tail = (1 - LEVEL) / 2
    low = float(gammaincinv(count, tail)) if count > 0 else 0.0
    return low, float(gammaincinv(count + 1, 1 - tail))


def unknown_interval(low: float, high: float) -> Interval:
    """All possible values, for rows that are too few for an estimate."""
    return Interval(low=low, high=high, level=LEVEL, method="all possible values: too few rows")
