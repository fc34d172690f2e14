"""Memorised samples, with evidence: p-values against real images, and a bound on the share of false ones.

A sample is suspicious if it is much closer to one training image than that region of image space is dense
(:mod:`genmod.metrics.copy_forms`). How close new images come by chance is measured on real ones: held-out
images against all training rows, and training rows against all other training rows. Data that contains
near copies of its own images thereby raises the p-values.

p-values are conformal: a sample's rank among n real images, at least 1 / (n + 1) (Bates et al. 2023, Testing
for outliers with conformal p-values). Beyond the last real image the tail continues as a generalised Pareto
law (Pickands 1975), fitted as by Zhang and Stephens 2009 (A new and efficient estimation method for the
generalized Pareto distribution), with an index above its estimate. There is a reason for that tail: in a
smooth density the logarithm of a ratio of neighbour distances has an exponential one, whose rate is the local
dimension (Levina and Bickel 2004). Letters: N samples, M real images, E exceedances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genmod.metrics.copy_forms import LEAST_CLOSENESS, Likeness
from genmod.metrics.intervals import share
from genmod.metrics.protocol import Interval

STATISTIC = "log ratio of neighbour distances, by the form of the residual"
"""What p-values are of, for the protocol."""

COPY_SHARE = 0.75
"""Share of the error that is spent on residuals of a copy's form; the rest on closeness of any form."""

MOST_FALSE = 5e-5
"""Largest p-value of a named sample, as long as there are calibration images for it: at most one new image in
20,000 is named even where most other samples are copies, and the false discovery rate alone allows more."""

_TAIL_SHARE, _TAIL_ROWS = 0.05, 250
"""The tail is fitted to this share of the real images, at most to so many."""

_LEAST_TAIL = 30
"""With fewer exceedances nothing is extrapolated."""

_CAUTION = 1.6448536269514722
"""Standard errors by which the tail's index is raised, the 95 % quantile of a normal law."""


@dataclass(frozen=True)
class Tail:
    """Distribution of a score among real images, with its upper tail."""

    score_M: Tensor
    """Ascending, float64; minus infinity where a score does not apply."""
    index: float
    """Index of the tail: 0 for an exponential one, above 0 for a heavier one; NaN if it is not known."""
    scale: float
    """Scale of the tail beyond the largest score."""

    @classmethod
    def fit(cls, score_M: Tensor) -> Tail:
        """Fit the scores of real images, (M,)."""
        score_M = score_M.to(torch.float64).sort().values
        finite = score_M[score_M.isfinite()]
        exceedances = min(_TAIL_ROWS, len(finite) - 1, int(_TAIL_SHARE * len(score_M)))
        if exceedances < _LEAST_TAIL:
            return cls(score_M, math.nan, math.nan)
        threshold = float(finite[-exceedances - 1])
        excess_E = finite[-exceedances:] - threshold
        excess_E = excess_E[excess_E > 0]
        if len(excess_E) < _LEAST_TAIL:
            return cls(score_M, math.nan, math.nan)
        index, scale = generalised_pareto(excess_E)
        error = _CAUTION * (1 + max(0.0, index)) / math.sqrt(len(excess_E))
        cautious = max(0.0, index) + error
        # A generalised Pareto law beyond a higher threshold has the same index and a larger scale.
        return cls(
            score_M, cautious, max(scale, 1e-9) * (1 + error) + cautious * float(excess_E[-1])
        )

    def p_values(self, score_N: Tensor) -> Tensor:
        """Probability that a new real image has at least such a score, (N,)."""
        score_N = score_N.to(torch.float64)
        real = len(self.score_M)
        below_N = torch.searchsorted(self.score_M, score_N.contiguous(), right=False)
        p_N = (real - below_N + 1).to(torch.float64) / (real + 1)
        if real and not math.isnan(self.index):
            beyond_N = (score_N - self.score_M[-1]).clamp(min=0)
            factor_N = (1 + self.index * beyond_N / self.scale) ** (-1 / self.index)
            p_N = p_N * factor_N
        return torch.where(score_N.isneginf(), 1.0, p_N)


def generalised_pareto(excess_E: Tensor) -> tuple[float, float]:
    """Index and scale of a generalised Pareto law (Zhang and Stephens 2009).

    Args:
        excess_E: positive excesses over a threshold.
    """
    x_E = excess_E.to(torch.float64).sort().values
    n = len(x_E)
    points = 20 + math.isqrt(n)
    quarter = float(x_E[int(n / 4 + 0.5) - 1])
    grid = 1 - torch.sqrt(points / (torch.arange(1, points + 1, dtype=torch.float64) - 0.5))
    theta = 1 / float(x_E[-1]) + grid / (3 * quarter)
    shape = torch.log1p(-theta[:, None] * x_E).mean(1)
    likelihood = n * (torch.log(-theta / shape) - shape - 1)
    weight = torch.softmax(likelihood, 0)
    best = float((theta * weight).sum())
    index = float(torch.log1p(-best * x_E).mean())
    return index, -index / best


@dataclass(frozen=True)
class Memorisation:
    """Which samples are copies of training images, and how sure that is."""

    likeness: Likeness
    """Of the samples."""
    p_N: Tensor
    """p-value of each sample, float64."""
    q_N: Tensor
    """Least false discovery rate at which a sample would be named, float64 (Benjamini and Hochberg 1995)."""
    named_N: Tensor
    """Whether a sample is named as a copy, bool."""
    fdr: float
    calibration: tuple[int, int]
    """Number of held-out images, and of training rows, that p-values are measured on."""
    share: float
    """Share of the samples that are named."""
    interval: Interval

    def most_suspicious(self, most: int) -> Tensor:
        """Numbers of the most suspicious samples, named ones first."""
        order_N = (-self.likeness.closeness_B).sort(stable=True).indices
        order_N = order_N[self.p_N[order_N].sort(stable=True).indices]
        return order_N[(~self.named_N[order_N]).to(torch.int8).sort(stable=True).indices][:most]


def memorisation(
    samples: Likeness, held_out: Likeness, others: Likeness, fdr: float
) -> Memorisation:
    """Name the samples that are copies of training images.

    Args:
        samples: likeness of every sample to all training rows.
        held_out: that of real images that are not in the training set.
        others: that of training rows to all other training rows.
        fdr: largest expected share of samples that are named without being copies, among the named ones.
    """
    real = Likeness.join([held_out, others])
    p_N = _p_values(samples, real)
    rows = len(real.row_B)
    named_N = name(p_N, fdr, max(MOST_FALSE, 2 / (rows + 1)))
    counts = len(held_out.row_B), len(others.row_B)
    return Memorisation(samples, p_N, q_values(p_N), named_N, fdr, counts, *share(named_N))


def _p_values(samples: Likeness, real: Likeness) -> Tensor:
    """The smaller of two p-values: among images of a copy's form, and among all. Bonferroni with weights."""
    formed_M, formed_N = (
        torch.where(each.is_copy_B, each.closeness_B, -torch.inf) for each in (real, samples)
    )
    copy_N = Tail.fit(formed_M).p_values(formed_N) / COPY_SHARE
    any_N = Tail.fit(real.closeness_B).p_values(samples.closeness_B) / (1 - COPY_SHARE)
    copy_N = torch.where(samples.closeness_B >= LEAST_CLOSENESS, copy_N, 1.0)
    # An image without structure is near nothing in particular.
    p_N = torch.where(samples.closeness_B > 0, torch.minimum(copy_N, any_N), 1.0)
    return p_N.clamp(max=1)


def q_values(p_N: Tensor) -> Tensor:
    """Adjusted p-values (Benjamini and Hochberg 1995): the false discovery rate at which each is rejected."""
    tests = len(p_N)
    order_N = p_N.sort(stable=True).indices
    rank_N = torch.arange(1, tests + 1, dtype=torch.float64)
    scaled_N = (p_N[order_N] * tests / rank_N).flip(0).cummin(0).values.flip(0).clamp(max=1)
    return torch.empty_like(p_N).scatter_(0, order_N, scaled_N)


def name(p_N: Tensor, fdr: float, largest: float) -> Tensor:
    """Which hypotheses are rejected with a false discovery rate of at most ``fdr``, bool (N,).

    The step-up procedure with limits min(fdr * rank / N, largest), which are at most those of Benjamini and
    Hochberg 1995, so it keeps their guarantee (Blanchard and Roquain 2008, Two simple sufficient conditions
    for FDR control). Where data repeats itself, no p-value is below ``largest``, even if all samples are
    copies: the procedure without that limit decides if it adds more than twice its expected false ones.

    Args:
        p_N: p-values.
        fdr: the false discovery rate.
        largest: largest p-value that is rejected, unless most rejections have larger ones.
    """
    few_N, many_N = _step_up(p_N, fdr, largest), _step_up(p_N, fdr, 1.0)
    few, many = int(few_N.sum()), int(many_N.sum())
    return many_N if many - few > 2 * fdr * many else few_N


def _step_up(p_N: Tensor, fdr: float, largest: float) -> Tensor:
    tests = len(p_N)
    sorted_N = p_N.sort().values
    limit_N = (fdr * torch.arange(1, tests + 1, dtype=torch.float64) / tests).clamp(max=largest)
    passed = (sorted_N <= limit_N).nonzero()[:, 0]
    if not len(passed):
        return torch.zeros(tests, dtype=torch.bool)
    return p_N <= limit_N[passed[-1]]
