"""Intervals hold the expected value as often as they say; exact ones are those of scipy."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from genmod.metrics.chance import class_distance
from genmod.metrics.frechet import frechet_distances
from genmod.metrics.groups import FREEDOM, group_spread
from genmod.metrics.intervals import (
    mean_interval,
    poisson_bounds,
    share_interval,
    t_quantile,
)
from genmod.metrics.kernel import kernel_distance
from genmod.metrics.neighbours import neighbourhoods
from genmod.rng import rng_for

DIMS = 4


def draw(purpose, rows, trial, scale=1.0, shift=0.0):
    """Independent rows with unequal variances."""
    rng = rng_for(trial, f"intervals/{purpose}", range(rows))
    spread_D = torch.arange(1, DIMS + 1, dtype=torch.float64).rsqrt()
    return rng.normal(DIMS, dtype=torch.float64) * spread_D * scale + shift


def least(trials, level=0.95, chance=1e-3):
    """Number of intervals that hold, of honest ones, with a probability of all but ``chance``."""
    return int(stats.binom.ppf(chance, trials, level))


def measured(fakes, real):
    """Values and intervals by metric."""
    distances = frechet_distances(fakes, real, seed=0)
    near = neighbourhoods(fakes, real, k=5, seed=0)
    return {
        "fd": distances.fd,
        "fd_infinity": distances.fd_infinity,
        "kid": kernel_distance(fakes, real),
        **{name: getattr(near, name) for name in near.__dataclass_fields__},
    }


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.8, 0.3)])
def test_intervals_hold_the_expected_value_as_often_as_they_say(scale, shift):
    trials, rows = 60, 120
    real = draw("real", rows, 0)
    found = [measured(draw("fake", rows, t, scale, shift), real) for t in range(trials)]
    for name in found[0]:
        values = torch.tensor([trial[name][0] for trial in found], dtype=torch.float64)
        intervals = [trial[name][1] for trial in found]
        held = sum(i.low <= float(values.mean()) <= i.high for i in intervals)
        assert held >= least(trials), name
        width = sum(i.high - i.low for i in intervals) / trials
        # Distances of equal distributions are skewed, and their intervals wide.
        most = 1.8 if scale == 1 else 1.4
        assert width < most * 2 * 1.96 * float(values.std()), name


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_intervals_of_class_balance_hold_its_expected_value(share):
    """The reference has ten equal classes; one class of the samples has another share or not."""
    trials, rows = 200, 300
    p_K = torch.full((10,), (1 - share) / 9, dtype=torch.float64)
    p_K[0] = share
    real_K = torch.full((10,), 0.1, dtype=torch.float64)
    ends_K = p_K.cumsum(0)
    found = []
    for trial in range(trials):
        uniform_N = rng_for(trial, "intervals/classes", range(rows)).uniform(1, dtype=torch.float64)
        labels_N = torch.searchsorted(ends_K, uniform_N[:, 0]).clamp(max=9)
        found.append(class_distance(labels_N.bincount(minlength=10), real_K, seed=0))
    values = torch.tensor([value for value, _ in found], dtype=torch.float64)
    held = sum(i.low <= float(values.mean()) <= i.high for _, i in found)
    assert held >= least(trials)
    width = sum(i.high - i.low for _, i in found) / trials
    assert width == pytest.approx(2 * 1.96 * float(values.std()), rel=0.25)


def test_exact_intervals_are_those_of_scipy():
    for hits, rows in ((0, 7), (3, 7), (7, 7), (499, 500), (1, 10_000)):
        expected = stats.binomtest(hits, rows).proportion_ci(method="exact")
        found = share_interval(hits, rows)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    for count in (0, 1, 20):
        low, high = poisson_bounds(count)
        if count:
            assert stats.poisson.sf(count - 1, low) == pytest.approx(0.025)
        assert stats.poisson.cdf(count, high) == pytest.approx(0.025)
    assert t_quantile(5) == pytest.approx(stats.t.ppf(0.975, 5))


def test_the_interval_of_a_mean_is_students():
    values_N = draw("mean", 20, 0)[:, 0]
    mean, interval = mean_interval(values_N)
    expected = stats.t.interval(0.95, 19, float(values_N.mean()), stats.sem(values_N.numpy()))
    assert (interval.low, interval.high) == pytest.approx(expected)
    assert mean == float(values_N.mean())
    limited = mean_interval(values_N, low=mean, high=mean)[1]
    assert (limited.low, limited.high) == (mean, mean)


def test_groups_recover_the_standard_error_of_a_mean():
    """A mean needs no groups, so its standard error is known."""
    rows = 2000
    values_N = draw("groups", rows, 0)[:, 0]

    def means(fakes, reals):
        found_A = torch.stack([values_N[row_N].mean() for row_N in fakes])
        return found_A[:, None, None].expand(-1, len(reals), 1)

    spread = group_spread(means, rows, 10, seed=0)
    assert spread.freedom >= FREEDOM
    bounds = stats.chi2.ppf([5e-4, 1 - 5e-4], spread.freedom) / spread.freedom
    ratio = (float(spread.stderr_S) / (float(values_N.std()) / rows**0.5)) ** 2
    assert bounds[0] < ratio < bounds[1]
    assert group_spread(means, 19, 10, seed=0) is None
