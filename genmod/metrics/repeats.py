"""Exact repeats among samples, and the number of images that a model draws from.

Arora et al. 2018, Do GANs learn the distribution? Some theory and empirics, sec. 3: by the birthday paradox,
among N draws from S equally likely images about N (N - 1) / (2 S) pairs are equal.
Letters: N rows, P pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genmod.metrics.intervals import poisson_bounds, share_interval
from genmod.metrics.protocol import LEVEL, Interval


@dataclass(frozen=True)
class Repeats:
    """How often samples repeat, with intervals."""

    duplicates: tuple[float, Interval]
    """Share of samples that have an exact copy among the others."""
    log10_support: tuple[float, Interval]
    """Decimal logarithm of the effective number of images that the model draws from: 1 / P(two are equal)."""


def repeats(pixels_NP: Tensor, levels: int) -> Repeats:
    """Share of duplicates and size of the support.

    Without a repeat the support is at least about N² / 7 images; its interval then ends at the number of all
    possible images. Counts of pairs are taken for Poisson counts, with their variance scaled where some
    images repeat often, so that pairs are not independent; shares of duplicates likewise.

    Args:
        pixels_NP: at least two rows of uint8 pixels.
        levels: number of values of a pixel.
    """
    pixels = pixels_NP.shape[1]
    rows = np.ascontiguousarray(pixels_NP.numpy()).view(f"V{pixels}")[:, 0]
    counts = np.unique(rows, return_counts=True)[1]
    size_N = torch.from_numpy(counts).to(torch.float64).repeat_interleave(torch.from_numpy(counts))
    return Repeats(_duplicates(size_N), _support(size_N, pixels * math.log10(levels)))


def _duplicates(size_N: Tensor) -> tuple[float, Interval]:
    """From the number of times that each row occurs."""
    n, copied_N = len(size_N), size_N[size_N > 1]
    if not len(copied_N):
        return 0.0, share_interval(0, n)
    # Rows come in groups of copies, so their number varies by as much more than that of independent rows.
    inflation = float(copied_N.mean())
    return len(copied_N) / n, share_interval(len(copied_N) / inflation, n / inflation)


def _support(size_N: Tensor, most_log10: float) -> tuple[float, Interval]:
    n = len(size_N)
    pairs, equal = n * (n - 1) / 2, float((size_N - 1).sum()) / 2
    rate_N = (size_N - 1) / (n - 1)
    # Hoeffding's variance of the share of equal pairs, in counts (Hoeffding 1948, Eq. 5.13).
    variance = pairs**2 * 4 / n * float(rate_N.var()) - equal
    inflation = max(1.0, variance / equal) if equal else 1.0
    low, high = (inflation * bound for bound in poisson_bounds(equal / inflation))
    value = max(0.0, math.log10(pairs / (equal + 1)))
    interval = Interval(
        low=min(value, max(0.0, math.log10(pairs / high))),
        high=max(value, math.log10(pairs / low)) if low > 0 else most_log10,
        level=LEVEL,
        method="exact Poisson interval of the number of equal pairs",
    )
    return value, interval
