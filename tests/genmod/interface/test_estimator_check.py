"""Checks of estimators: a correct estimate passes, and each kind of error is detected."""

import math
from dataclasses import replace

import pytest
import torch

from genmod.interface.estimator_check import check_estimate
from genmod.interface.log_prob import LogProb
from genmod.rng import rng_for

ROWS = 400
TRUTH_B = torch.linspace(-30, -10, ROWS, dtype=torch.float64)
NOISE_B = rng_for(0, "noise", range(ROWS)).normal(dtype=torch.float64)


def estimate(error_B, stderr, label="estimate"):
    nats_B = TRUTH_B + error_B
    stderr_B = torch.full_like(nats_B, stderr)
    return LogProb(nats_B, stderr_B, label, "estimator", "model", "counts", {})


def test_correct_standard_errors_pass():
    check = check_estimate("known density", estimate(0.1 * NOISE_B, 0.1), TRUTH_B)
    assert check.passed
    assert check.error_nats == pytest.approx(0.1 * NOISE_B.mean().item())
    assert check.stderr_nats == pytest.approx(0.1 / math.sqrt(ROWS))


def test_a_bias_is_detected():
    check = check_estimate("known density", estimate(0.1 * NOISE_B + 0.03, 0.1), TRUTH_B)
    assert check.problem.startswith("off by more than 0.015")


def test_too_small_standard_errors_are_detected():
    check = check_estimate(
        "known density", estimate(0.1 * NOISE_B - 0.1 * NOISE_B.mean(), 0.05), TRUTH_B
    )
    assert "% of the rows are off" in check.problem


@pytest.mark.parametrize(("label", "sign"), [("lower_bound", -1), ("upper_bound", 1)])
def test_bounds_are_checked_on_their_side(label, sign):
    noise_B = 0.1 * NOISE_B
    good = check_estimate(
        "known density", estimate(noise_B + sign * 0.5, 0.1, label), TRUTH_B, slack_nats=0.6
    )
    assert good.passed
    wrong = check_estimate(
        "known density", estimate(noise_B - sign * 0.05, 0.1, label), TRUTH_B, slack_nats=0.6
    )
    assert wrong.problem.startswith("on the wrong side")
    loose = check_estimate(
        "known density", estimate(noise_B + sign * 0.7, 0.1, label), TRUTH_B, slack_nats=0.6
    )
    assert loose.problem.startswith("looser than")


def test_exact_labels_are_checked_row_by_row():
    error_B = torch.zeros(ROWS, dtype=torch.float64)
    assert check_estimate("known density", estimate(error_B, 0.0, "exact"), TRUTH_B).passed
    error_B[17] = 2e-4
    check = check_estimate("known density", estimate(error_B, 0.0, "exact"), TRUTH_B)
    assert not check.passed
    assert check.error_nats == pytest.approx(2e-4)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_detected(wrong):
    error_B = torch.zeros(ROWS, dtype=torch.float64)
    error_B[0] = wrong
    check = check_estimate(
        "known density", estimate(error_B, 0.1, "lower_bound"), TRUTH_B, slack_nats=9.0
    )
    assert check.problem == "not a finite number"


def test_in_the_mean_uses_the_scatter_of_the_rows():
    error_B = 2 * NOISE_B - 2 * NOISE_B.mean() + 0.2
    log_prob = estimate(error_B, 0.0, "lower_bound")
    assert not check_estimate("known density", log_prob, TRUTH_B).passed
    assert check_estimate("known density", log_prob, TRUTH_B, in_the_mean=True).passed
    far = replace(log_prob, nats_B=log_prob.nats_B + 0.2)
    assert not check_estimate("known density", far, TRUTH_B, in_the_mean=True).passed
