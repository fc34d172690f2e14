"""Rows that stated gains need: before measuring by the best case, afterwards by the measured noise."""

from __future__ import annotations

import math

import pytest

from genmod.evaluation.policy import POWER, PromoteConfig, Rule
from genmod.evaluation.rows_needed import least_rows, rows_for_gain, smallest_gain
from genmod.rng import rng_for


def policy(gain, metric="coverage", **settings):
    rules = {metric: Rule(improve_by=gain), "fd": Rule(improve_by=1)}
    return PromoteConfig(rules=rules, **settings)


@pytest.mark.parametrize("gain", [0.01, 0.03, 0.2, 1.0])
def test_fewer_rows_than_the_least_find_the_gain_too_seldom(gain):
    config = policy(gain, planned_decisions=1)  # error 0.01 for each of two rules: 8 gained rows
    rows = least_rows("coverage", config)
    trials = 20_000
    for number, found in ((rows, True), (rows - 1, False)):
        draws = rng_for(0, "rows", range(trials)).uniform(number)
        share = float(((draws < gain).sum(1) >= 8).float().mean())
        error = 3 * math.sqrt(POWER * (1 - POWER) / trials)
        assert share > POWER - error if found else share < POWER + error


def test_smaller_gains_and_smaller_errors_need_more_rows():
    needed = [least_rows("coverage", policy(gain)) for gain in (0.1, 0.03, 0.01)]
    assert needed == sorted(needed)
    assert least_rows("coverage", policy(0.03, planned_decisions=1)) < needed[1]
    assert least_rows("recall[pca@1]", policy(0.03, "recall[pca@1]")) == needed[1]


def test_other_metrics_are_not_known_before():
    assert least_rows("fd", policy(0.03)) is None
    no_gain = PromoteConfig(rules={"coverage": Rule(max_regression=0.1)}, improvements=0)
    assert least_rows("coverage", no_gain) is None
    assert least_rows("bits_per_dim", policy(0.01, "bits_per_dim")) == 12  # 2**-12 < 0.00025


def test_the_smallest_gain_of_some_rows_needs_no_more_rows():
    for rows in (20, 200, 2000):
        gain = smallest_gain("coverage", policy(0.001), rows)
        assert least_rows("coverage", policy(gain)) <= rows
        assert least_rows("coverage", policy(0.95 * gain)) > rows
    assert smallest_gain("coverage", policy(0.001), 5) is None


def test_rows_for_a_gain_follow_the_square_of_the_noise():
    from genmod.evaluation.policy import Quantiles

    quantiles = Quantiles(gain=3, loss=3, worse=2, power=1)
    assert rows_for_gain(100, 0.1, 0.4, quantiles) == 100
    assert rows_for_gain(100, 0.2, 0.4, quantiles) == 400
    assert rows_for_gain(100, 0.1, 0, quantiles) is None
    assert rows_for_gain(100, 0.1, math.inf, quantiles) is None
