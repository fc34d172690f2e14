"""Fréchet distance against closed forms."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import sqrtm

from genmod.metrics.frechet import (
    FeatureMoments,
    covariance_root,
    feature_moments,
    frechet,
    frechet_distance,
    frechet_distances,
)
from genmod.rng import rng_for


def normal(purpose, rows, dims):
    return rng_for(0, purpose, range(rows)).normal(dims, dtype=torch.float64)


def spd(purpose, dims):
    a_DD = normal(purpose, dims, dims)
    return a_DD @ a_DD.T / dims + 0.1 * torch.eye(dims, dtype=torch.float64)


def test_means_alone_count_by_their_squared_distance():
    cov_DD = spd("cov", 5)
    shift_D = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0], dtype=torch.float64)
    a, b = (
        FeatureMoments(torch.zeros(5, dtype=torch.float64), cov_DD),
        FeatureMoments(shift_D, cov_DD),
    )
    assert frechet(a, b) == pytest.approx(float(shift_D.square().sum()), rel=1e-12)


def test_commuting_covariances_count_by_the_distance_of_their_roots():
    a_D = torch.tensor([4.0, 9.0, 0.25], dtype=torch.float64)
    b_D = torch.tensor([1.0, 16.0, 0.0], dtype=torch.float64)  # singular
    zero_D = torch.zeros(3, dtype=torch.float64)
    value = frechet(FeatureMoments(zero_D, a_D.diag()), FeatureMoments(zero_D, b_D.diag()))
    assert value == pytest.approx((2 - 1) ** 2 + (3 - 4) ** 2 + 0.5**2, rel=1e-12)


def test_general_covariances_agree_with_scipy_in_both_directions():
    a = FeatureMoments(normal("a", 1, 8)[0], spd("ca", 8))
    b = FeatureMoments(normal("b", 1, 8)[0], spd("cb", 8))
    cross = sqrtm(a.cov_DD.numpy() @ b.cov_DD.numpy()).real
    wanted = (a.mean_D - b.mean_D).square().sum() + (a.cov_DD + b.cov_DD).trace()
    wanted = float(wanted) - 2 * cross.trace()
    assert frechet(a, b) == pytest.approx(wanted, rel=1e-9)
    assert frechet(b, a) == pytest.approx(wanted, rel=1e-9)


def test_a_set_is_at_distance_zero_of_itself_even_with_fewer_rows_than_features():
    rows_ND = normal("few", 10, 32)
    value, interval = frechet_distance(rows_ND, rows_ND)
    assert value == pytest.approx(0, abs=1e-6)
    assert interval.low == 0


def test_repeated_rows_are_by_definition():
    """One image again and again has no covariance; few distinct ones have a singular covariance."""
    ones_ND, threes_ND = torch.ones(12, 5).double(), torch.full((9, 5), 3.0).double()
    assert frechet_distance(threes_ND, ones_ND)[0] == pytest.approx(5 * 2**2)
    real_ND = normal("two", 2, 5)[torch.arange(20) % 2]
    mean_part = (real_ND.mean(0) - 1).square().sum()
    wanted = float(mean_part + real_ND.T.cov().trace())  # of a Gaussian to a point
    assert frechet_distance(ones_ND, real_ND)[0] == pytest.approx(wanted)
    # Two sets on one line: the distance of their means, and of their standard deviations along it.
    line_D, place_N = normal("line", 1, 5)[0], torch.tensor([0.0, 1.0] * 10).double()
    a_ND, b_ND = place_N[:, None] * line_D, 3 * place_N[:, None] * line_D
    size = float(line_D.square().sum())
    wanted = size * (float(place_N.mean()) * 2) ** 2 + size * (float(place_N.std()) * 2) ** 2
    assert frechet_distance(a_ND, b_ND)[0] == pytest.approx(wanted)


def test_features_of_known_gaussians_give_the_closed_form():
    real_ND = normal("real", 20_000, 4)
    fake_ND = 2 * normal("fake", 20_000, 4) + torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    value, interval = frechet_distance(fake_ND, real_ND)
    assert interval.low < 1 + 4 * (2 - 1) ** 2 < interval.high
    assert value == pytest.approx(5, rel=0.05)


def test_intervals_hold_the_mean_of_many_draws_about_as_often_as_they_say():
    dims, rows, trials = 4, 200, 60
    real_ND = normal("truth", 400, dims)
    draws = [normal(f"draw/{t}", rows, dims) + 0.5 for t in range(trials)]
    measured = [frechet_distance(d_ND, real_ND) for t, d_ND in enumerate(draws)]
    mean = sum(value for value, _ in measured) / trials
    held = sum(interval.low <= mean <= interval.high for _, interval in measured)
    assert held >= 51  # of 60; 95 % is 57, and fewer than 51 has probability below 1e-3
    widths = [interval.high - interval.low for _, interval in measured]
    spread = torch.tensor([value for value, _ in measured]).std().item()
    assert sum(widths) / trials == pytest.approx(2 * 1.96 * spread, rel=0.35)


@pytest.mark.parametrize(("rows", "trials", "held"), [(200, 40, 34), (2_000, 20, 15)])
def test_fd_infinity_is_the_distance_of_the_distributions_without_the_bias_of_few_samples(
    rows, trials, held
):
    """``held``: fewer intervals of 95 % with the closed form have a probability below 1e-3."""
    dims, scale, shift = 16, 1.3, 0.5
    drawn_ND = normal("reference", 500, dims)
    moments = feature_moments(drawn_ND)
    # A reference whose mean is exactly 0 and whose covariance is exactly the unit matrix.
    real_ND = (drawn_ND - moments.mean_D) @ torch.linalg.inv(covariance_root(moments.cov_DD))
    truth = dims * (scale - 1) ** 2 + shift**2
    shift_D = shift * torch.eye(dims, dtype=torch.float64)[0]
    measured = [
        frechet_distances(scale * normal(f"{rows}/{t}", rows, dims) + shift_D, real_ND, seed=t)
        for t in range(trials)
    ]
    fd_T, infinity_T = (
        torch.tensor([each[0] for each in values])
        for values in ([m.fd for m in measured], [m.fd_infinity for m in measured])
    )
    bias = abs(float(infinity_T.mean()) - truth)
    assert bias < (float(fd_T.mean()) - truth) / 2
    assert bias < 3 * float(infinity_T.std()) / trials**0.5
    intervals = [m.fd_infinity[1] for m in measured]
    assert sum(each.low <= truth <= each.high for each in intervals) >= held
