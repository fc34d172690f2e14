"""The judge of the self-test: what is right passes, and each way to be wrong is caught."""

import math
from dataclasses import replace

import pytest
import torch

from genmod.distributions.gaussian import Gaussian
from genmod.interface.log_prob import LogProb
from genmod.likelihood import iwae
from genmod.rng import rng_for
from genmod.selftest import latents
from genmod.selftest.check import check_estimate
from genmod.selftest.density import run_benches
from genmod.selftest.truths import IsotropicMixture, LinearGaussian

ROWS = 400
TRUTH_B = torch.linspace(-30, -10, ROWS, dtype=torch.float64)
NOISE_B = rng_for(0, "noise", range(ROWS)).normal(dtype=torch.float64)


def estimate(error_B, stderr, label="estimate"):
    nats_B = TRUTH_B + error_B
    stderr_B = torch.full_like(nats_B, stderr)
    return LogProb(nats_B, stderr_B, label, "some", "some model", "counts", {})


def test_honest_noise_passes():
    check = check_estimate("bench", estimate(0.1 * NOISE_B, 0.1), TRUTH_B)
    assert check.holds
    assert check.error_nats == pytest.approx(0.1 * NOISE_B.mean().item())
    assert check.stderr_nats == pytest.approx(0.1 / math.sqrt(ROWS))


def test_an_offset_is_caught():
    check = check_estimate("bench", estimate(0.1 * NOISE_B + 0.03, 0.1), TRUTH_B)
    assert check.fault.startswith("off by more than 0.015")


def test_a_standard_error_that_is_too_small_is_caught():
    check = check_estimate("bench", estimate(0.1 * NOISE_B - 0.1 * NOISE_B.mean(), 0.05), TRUTH_B)
    assert "% of the rows are off" in check.fault


@pytest.mark.parametrize(("label", "sign"), [("lower_bound", -1), ("upper_bound", 1)])
def test_bounds_have_a_side(label, sign):
    noise_B = 0.1 * NOISE_B
    good = check_estimate(
        "bench", estimate(noise_B + sign * 0.5, 0.1, label), TRUTH_B, slack_nats=0.6
    )
    assert good.holds
    wrong = check_estimate(
        "bench", estimate(noise_B - sign * 0.05, 0.1, label), TRUTH_B, slack_nats=0.6
    )
    assert wrong.fault.startswith("on the wrong side")
    loose = check_estimate(
        "bench", estimate(noise_B + sign * 0.7, 0.1, label), TRUTH_B, slack_nats=0.6
    )
    assert loose.fault.startswith("looser than")


def test_what_is_exact_is_asked_row_by_row():
    error_B = torch.zeros(ROWS, dtype=torch.float64)
    assert check_estimate("bench", estimate(error_B, 0.0, "exact"), TRUTH_B).holds
    error_B[17] = 2e-4
    check = check_estimate("bench", estimate(error_B, 0.0, "exact"), TRUTH_B)
    assert not check.holds
    assert check.error_nats == pytest.approx(2e-4)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_caught(wrong):
    error_B = torch.zeros(ROWS, dtype=torch.float64)
    error_B[0] = wrong
    check = check_estimate("bench", estimate(error_B, 0.1, "lower_bound"), TRUTH_B, slack_nats=9.0)
    assert check.fault == "not a finite number"


def test_a_promise_of_the_mean_has_the_rows_scatter():
    error_B = 2 * NOISE_B - 2 * NOISE_B.mean() + 0.2
    log_prob = estimate(error_B, 0.0, "lower_bound")
    assert not check_estimate("bench", log_prob, TRUTH_B).holds
    assert check_estimate("bench", log_prob, TRUTH_B, in_the_mean=True).holds
    far = replace(log_prob, nats_B=log_prob.nats_B + 0.2)
    assert not check_estimate("bench", far, TRUTH_B, in_the_mean=True).holds


# Estimators with the mistakes that people make


def sums_weights_without_dividing(log_weights_SB, k):
    """Forgets -log k: above log p."""
    nats_B, stderr_B = right_bound(log_weights_SB, k)
    return nats_B + math.log(k), stderr_B


def averages_over_dimensions(log_weights_SB, k):
    nats_B, stderr_B = right_bound(log_weights_SB, k)
    return nats_B / 8, stderr_B / 8


def takes_the_best_sample(log_weights_SB, k):
    nats_B, stderr_B = right_bound(log_weights_SB, k)
    return nats_B + 0.05, stderr_B


right_bound = iwae.iwae_bound


@pytest.mark.parametrize(
    "wrong", [sums_weights_without_dividing, averages_over_dimensions, takes_the_best_sample]
)
def test_a_wrong_bound_is_caught(wrong, monkeypatch):
    assert all(check.holds for check in run_benches((latents.checks,)))
    monkeypatch.setattr(iwae, "iwae_bound", wrong)
    assert not all(check.holds for check in run_benches((latents.checks,)))


def test_a_posterior_that_forgets_its_own_density_is_caught(monkeypatch):
    """log p(x, z) without - log q(z | x)."""
    monkeypatch.setattr(Gaussian, "nats", lambda self, z_BZ: torch.zeros(len(z_BZ)).double())
    assert not all(check.holds for check in run_benches((latents.checks,)))


# The truths themselves


def grid(side, reach):
    edge = (torch.arange(side, dtype=torch.float64) + 0.5) * (2 * reach / side) - reach
    return torch.cartesian_prod(edge, edge), (2 * reach / side) ** 2


def test_marginal_is_the_integral_over_latents():
    truth = LinearGaussian.example(dims=4, latents=2, noise=0.6)
    x_BD = truth.draw(rng_for(0, "x", range(3)))
    z_NZ, area = grid(400, 9.0)
    for x_D in x_BD:
        joint_N = truth.nats_given(x_D.expand(len(z_NZ), -1), z_NZ)
        integral = (joint_N.logsumexp(0) + math.log(area)).item()
        assert integral == pytest.approx(truth.nats(x_D[None]).item(), abs=1e-6)
        mean_1Z, covariance_ZZ = truth.posterior(x_D[None])
        weight_N = joint_N.softmax(0)
        torch.testing.assert_close(weight_N @ z_NZ, mean_1Z[0])
        apart_NZ = z_NZ - mean_1Z
        torch.testing.assert_close((weight_N[:, None] * apart_NZ).T @ apart_NZ, covariance_ZZ)


@pytest.mark.parametrize(
    "truth",
    [
        LinearGaussian.example(dims=3, latents=2, noise=0.5),
        IsotropicMixture.scattered(3, 4, 0.8, 0.3),
    ],
    ids=["gaussian", "mixture"],
)
@pytest.mark.parametrize("sigma", [0.05, 0.7])
def test_denoisers_are_tweedies(truth, sigma):
    """D(x) = x + sigma^2 d/dx log p(x; sigma)."""
    x_BD = truth.draw(rng_for(0, "x", range(5))).requires_grad_()
    (score_BD,) = torch.autograd.grad(truth.nats(x_BD, sigma).sum(), x_BD)
    denoised_BD = truth.denoise(x_BD, torch.tensor(sigma, dtype=torch.float64))
    torch.testing.assert_close(denoised_BD, x_BD + sigma**2 * score_BD)


def test_probabilities_of_bins_add_up_to_one():
    truth = IsotropicMixture.ring(3, 0.7, 0.3)  # a good part lies beyond the edges
    each = torch.arange(64)
    pixels_B2 = torch.cartesian_prod(each, each)
    nats_B = truth.bin_nats(pixels_B2, 64)
    assert nats_B.exp().sum().item() == pytest.approx(1, abs=1e-9)
    middle_B2 = (2 * pixels_B2.double() + 1) / 64 - 1
    inside = ((pixels_B2 > 0) & (pixels_B2 < 63)).all(1)
    density_B = truth.nats(middle_B2) + 2 * math.log(2 / 64)
    torch.testing.assert_close(nats_B[inside].exp(), density_B[inside].exp(), rtol=0.01, atol=1e-6)


def test_draws_have_the_covariance():
    truth = LinearGaussian.example(dims=3, latents=2, noise=0.5)
    x_BD = truth.draw(rng_for(0, "x", range(20_000)))
    torch.testing.assert_close(torch.cov(x_BD.T), truth.covariance_DD, rtol=0, atol=0.08)
    torch.testing.assert_close(x_BD.mean(0), truth.mean_D, rtol=0, atol=0.05)
