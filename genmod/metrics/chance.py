"""Whether counts differ by more than chance: class shares of two sets, and hits of a classifier.

Letters: N rows, K classes, R resamplings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genmod.metrics.intervals import symmetric_interval
from genmod.metrics.protocol import Interval
from genmod.rng import rng_for

_RESAMPLINGS = 4_000

_SIGNIFICANCE = 0.05
"""Chance of finding a difference where there is none."""

_Z = 1.6448536269514722
"""One-sided normal quantile of `_SIGNIFICANCE`."""


def shares_differ(a_K: Tensor, b_K: Tensor) -> bool:
    """Whether the class shares of two sets differ by more than chance (Pearson's test of homogeneity).

    Args:
        a_K: rows of each class in one set.
        b_K: in the other.
    """
    counts_2K = torch.stack((a_K, b_K)).to(torch.float64)
    counts_2K = counts_2K[:, counts_2K.sum(0) > 0]
    totals_2, classes = counts_2K.sum(1), counts_2K.shape[1]
    if classes < 2 or not (totals_2 > 0).all():
        return False
    expected_2K = totals_2[:, None] * counts_2K.sum(0) / totals_2.sum()
    statistic = ((counts_2K - expected_2K).square() / expected_2K).sum()
    freedom = torch.tensor((classes - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2)) < _SIGNIFICANCE


def beats_chance(predicted_N: Tensor, labels_N: Tensor, classes: int) -> bool:
    """Whether predictions hit more labels than they would if they were shuffled, by more than chance.

    The expected hits and their variance are those of a random permutation, so a constant guess of the most
    frequent class hits as many as expected, and does not beat chance.

    Args:
        predicted_N: predicted classes.
        labels_N: true classes.
        classes: number of classes K.
    """
    n = len(labels_N)
    if n < 2:
        return False
    p_K, t_K = (x_N.bincount(minlength=classes).double() for x_N in (predicted_N, labels_N))
    hits = float((predicted_N == labels_N).sum())
    both = float(p_K @ t_K)
    expected = both / n
    # Sum over pairs of rows of the probability that both hit, for a random permutation of the labels.
    same = float((p_K * (p_K - 1)) @ (t_K * (t_K - 1)))
    other = both**2 - float((p_K * t_K).square().sum())
    pairs = (same + other) / (n * (n - 1))
    variance = max(0.0, pairs + expected - expected**2)
    return hits > expected + _Z * math.sqrt(variance) + 1e-9


def class_distance(fake_K: Tensor, real_K: Tensor, seed: int) -> tuple[float, Interval]:
    """Total variation distance of class shares, with its interval over new draws of the samples.

    The standard error is that of normal class shares with the covariance of a multinomial. Their means are
    the observed shares moved towards the reference's by as much as chance moved them away on average (James
    and Stein 1961, Estimation with quadratic loss, Eq. 9): the distance of equal shares varies less.

    Args:
        fake_K: samples of each class.
        real_K: share of each class in the reference.
        seed: seed of the resamplings.
    """
    n, classes = int(fake_K.sum()), len(fake_K)
    share_K, real_K = fake_K.to(torch.float64) / n, real_K.to(torch.float64)
    gap_K = share_K - real_K
    value = float(gap_K.abs().sum()) / 2
    pooled_K = (share_K + real_K) / 2
    used_K = pooled_K > 0
    statistic = n * float((gap_K[used_K].square() / pooled_K[used_K]).sum())
    kept = max(0.0, 1 - (int(used_K.sum()) - 1) / statistic) if statistic else 0.0
    mean_K = real_K + kept * gap_K
    normal_RK = rng_for(seed, "evaluate/class-balance", range(_RESAMPLINGS)).normal(
        classes, dtype=torch.float64
    )
    root_K = mean_K.sqrt()
    # Covariance diag(p) - p pᵀ: the part of the roots' direction is taken out.
    noise_RK = root_K * (normal_RK - (normal_RK @ root_K)[:, None] * root_K)
    drawn_RK = gap_K * kept + noise_RK / math.sqrt(n)
    stderr = float((drawn_RK.abs().sum(1) / 2).std())
    method = "standard error from normal resamplings of the samples' class shares"
    return value, symmetric_interval(value, stderr, method, bounds=(0.0, 1.0))
