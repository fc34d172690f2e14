"""Clipped density and coverage are the share of good samples; density and coverage are not."""

from __future__ import annotations

import pytest
import torch

from genmod.metrics.clipped import expected_coverage
from genmod.metrics.neighbours import neighbourhoods
from genmod.rng import rng_for

ROWS, DIMS, K = 600, 8, 5
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def normal(purpose, rows=ROWS):
    return rng_for(0, purpose, range(rows)).normal(DIMS, dtype=torch.float64)


def measured(good):
    """Of samples of which a share is from the real distribution, the others are far away."""
    rows = round(good * ROWS)
    fake_ND = torch.cat((normal("good", rows), 30 + normal("bad", ROWS - rows)))
    return neighbourhoods(fake_ND, normal("real"), K, seed=0)


def test_they_are_linear_in_the_share_of_good_samples():
    found = {good: measured(good) for good in SHARES}
    for good, near in found.items():
        # Two standard deviations of a share of 600 rows, and the curvature of the finite number.
        assert near.clipped_density[0] == pytest.approx(good, abs=0.08), good
        assert near.clipped_coverage[0] == pytest.approx(good, abs=0.08), good
    # Half of the samples are bad, but nine tenths of the real rows are still covered.
    assert found[0.5].coverage[0] > 0.8


def test_outliers_of_the_real_rows_make_no_sample_good():
    """One real row in twenty is an outlier with a large ball, in which all samples are."""
    real_ND = torch.cat((normal("real", 570), 40 * normal("outliers", 30)))
    fake_ND = 12 + normal("wrong")
    near = neighbourhoods(fake_ND, real_ND, K, seed=0)
    assert near.precision[0] > 0.9
    assert near.density[0] > 0.5
    assert near.clipped_density[0] < 0.05


def test_the_expected_coverage_is_the_mean_over_draws():
    draws = [
        neighbourhoods(
            normal(f"fake/{t}", 100), normal(f"real/{t}", 100), K, seed=0
        ).clipped_coverage
        for t in range(12)
    ]
    values = torch.tensor([value for value, _ in draws], dtype=torch.float64)
    assert abs(float(values.mean()) - 1) < 4 * float(values.std()) / len(draws) ** 0.5
    assert expected_coverage(0, K, 100) == 0
    assert expected_coverage(1, 1, 100) == pytest.approx(1 / 100)  # one ball's mass on average
    assert expected_coverage(10**6, K, 100) == pytest.approx(1)


def test_balls_and_scale_are_by_definition():
    """Salvy et al. 2026, sec. 4, with loops and closed balls."""
    fake_ND, real_ND = 0.8 * normal("fake", 40) + 0.3, normal("real", 40)

    def radius(i):
        others = sorted(float((real_ND[i] - r).norm()) for j, r in enumerate(real_ND) if j != i)
        return others[K - 1]

    radii = torch.tensor([radius(i) for i in range(40)], dtype=torch.float64)
    clipped = radii.clamp(max=float(radii.quantile(0.5)))

    def contribution(row, skip):
        inside = sum(
            float((row - r).norm()) <= c + 1e-9 for r, c in zip(real_ND, clipped, strict=True)
        )
        return min(1.0, (inside - skip) / K)

    share = float(sum(contribution(row, 0) for row in fake_ND)) / 40
    real_share = float(sum(contribution(row, 1) for row in real_ND)) / 40
    near = neighbourhoods(fake_ND, real_ND, K, seed=0)
    # The median of an even number of squared radii differs from that of the radii a little.
    assert near.clipped_density[0] == pytest.approx(float(share / real_share), abs=0.02)
