"""The classifier two-sample test, and repeats among samples, against known truths."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import expit

from genmod.metrics import two_sample
from genmod.metrics.repeats import repeats
from genmod.metrics.two_sample import logistic_weights, two_sample_accuracy
from genmod.rng import rng_for


def normal(purpose, rows, dims=4):
    return rng_for(0, purpose, range(rows)).normal(dims, dtype=torch.float64)


def test_no_difference_is_seen_between_equal_distributions():
    value, interval = two_sample_accuracy(normal("a", 2000), normal("b", 2000), seed=0)
    assert interval.low < 0.5 < interval.high
    assert abs(value - 0.5) < 0.06


def test_a_shift_is_seen_as_well_as_can_be():
    """Of two normal distributions one unit apart in each of 4 axes, Bayes' rule is right in 84 %."""
    value, interval = two_sample_accuracy(normal("a", 4000) + 1, normal("b", 4000), seed=0)
    best = 0.5 * math.erfc(-1 / math.sqrt(2))  # half the distance, 2 / 2, in standard deviations
    assert interval.low < best < interval.high
    assert value == pytest.approx(best, abs=0.03)


def test_a_difference_of_variances_alone_is_seen():
    assert two_sample_accuracy(2 * normal("a", 1000), normal("b", 1000), seed=0)[0] > 0.7


def test_separable_and_constant_features_have_finite_weights():
    far = torch.cat((normal("a", 100) + 100, torch.ones(100, 1, dtype=torch.float64)), 1)
    near = torch.cat((normal("b", 100), torch.ones(100, 1, dtype=torch.float64)), 1)
    assert two_sample_accuracy(far, near, seed=0)[0] == 1
    same = torch.ones(20, 3, dtype=torch.float64)
    assert two_sample_accuracy(same, same, seed=0)[0] == 0.5


@pytest.mark.parametrize("block_rows", [7, 8192])
def test_weights_are_a_stationary_point(monkeypatch, block_rows):
    monkeypatch.setattr(two_sample, "_BLOCK_ROWS", block_rows)
    input_NE, target_N = normal("inputs", 200, 5), (normal("targets", 200, 1)[:, 0] > 0).double()
    weights_E = logistic_weights(input_NE, target_N, lambda rows_NE: rows_NE)
    p_N = torch.from_numpy(expit((input_NE @ weights_E).numpy()))
    gradient_E = input_NE.T @ (p_N - target_N) + 0.01 * 200 * weights_E
    assert float(gradient_E.abs().max()) < 1e-6


def pixels(images, rows, purpose="draws"):
    """Draws from a number of equally likely images of four pixels."""
    which_N = rng_for(0, purpose, range(rows)).integers(images, 1)[:, 0]
    return torch.stack([which_N // 256**place % 256 for place in range(4)], 1).to(torch.uint8)


def test_without_a_repeat_the_support_is_bounded_from_below():
    found = repeats(torch.arange(200, dtype=torch.uint8)[:, None], levels=256)
    assert found.duplicates[0] == 0
    assert found.duplicates[1].high < 0.02
    value, interval = found.log10_support
    assert value == pytest.approx(math.log10(200 * 199 / 2))
    assert (interval.low, interval.high) == pytest.approx(
        (math.log10(200 * 199 / 2 / 3.689), math.log10(256)), abs=1e-3
    )


@pytest.mark.parametrize("images", [10, 1000, 100_000])
def test_the_support_is_found(images):
    held = 0
    for trial in range(60):
        value, interval = repeats(pixels(images, 1500, f"draws/{trial}"), 256).log10_support
        held += interval.low <= math.log10(images) <= interval.high
        assert interval.low <= value <= interval.high
    assert held >= 51  # fewer have probability below 1e-3 at 95 %


def test_duplicates_count_all_rows_that_have_a_copy():
    rows_NP = torch.tensor([[1, 2], [3, 4], [1, 2], [5, 6], [1, 2], [7, 8], [5, 6], [9, 9]])
    assert repeats(rows_NP.to(torch.uint8), 256).duplicates[0] == 5 / 8
    alone = repeats(torch.ones(30, 3, dtype=torch.uint8), 256)
    assert alone.duplicates[0] == 1
    assert alone.log10_support[0] == 0
