"""Shared estimators with common mistakes: the self-test detects each of them."""

import math

import pytest
import torch

from genmod.distributions.closed_form import IsotropicMixture
from genmod.distributions.gaussian import Gaussian
from genmod.likelihood import adaptive, iwae, ode
from genmod.likelihood.process import GaussianPrior
from genmod.selftest import latents
from genmod.selftest.density import run_checks
from genmod.selftest.probability_flow import flow_check


def problems(*groups):
    return [check.problem for check in run_checks(groups) if not check.passed]


def small_flow(seed):
    """The adaptive solver on one distribution, with the exact trace and with probes."""
    ring = IsotropicMixture.ring(6, 0.5, 0.1)
    for draws in (0, 8):
        yield flow_check(ring, "ring", seed, rows=40, draws=draws, steps=None)


def without_log_k(log_weights_SB, k):
    """Omits - log k, so it is above log p."""
    nats_B, stderr_B = correct_bound(log_weights_SB, k)
    return nats_B + math.log(k), stderr_B


def mean_over_dimensions(log_weights_SB, k):
    nats_B, stderr_B = correct_bound(log_weights_SB, k)
    return nats_B / 8, stderr_B / 8


def slightly_above(log_weights_SB, k):
    nats_B, stderr_B = correct_bound(log_weights_SB, k)
    return nats_B + 0.05, stderr_B


correct_bound = iwae.iwae_bound


@pytest.mark.parametrize("wrong", [without_log_k, mean_over_dimensions, slightly_above])
def test_a_wrong_importance_weighted_bound_is_detected(wrong, monkeypatch):
    assert not problems(latents.checks)
    monkeypatch.setattr(iwae, "iwae_bound", wrong)
    assert problems(latents.checks)


def test_a_missing_posterior_density_is_detected(monkeypatch):
    """log p(x, z) without - log q(z | x)."""
    monkeypatch.setattr(Gaussian, "nats", lambda self, z_BZ: torch.zeros(len(z_BZ)).double())
    assert problems(latents.checks)


@pytest.mark.slow
def test_the_correct_flow_density_passes():
    assert problems(small_flow) == []


def test_a_trace_with_the_wrong_sign_is_detected(monkeypatch):
    def negated(denoise, x_BCHW, probe_BCHW):
        clean_BCHW, trace_B = ode.trace(denoise, x_BCHW, probe_BCHW)
        return clean_BCHW, -trace_B

    monkeypatch.setattr(adaptive, "trace", negated)
    assert len(problems(small_flow)) == 2


def test_a_prior_at_the_wrong_scale_is_detected(monkeypatch):
    correct = GaussianPrior.nats
    monkeypatch.setattr(GaussianPrior, "nats", lambda self, x: correct(self, x / 100))
    assert len(problems(small_flow)) == 2


def test_a_prior_without_its_volume_is_detected(monkeypatch):
    correct = GaussianPrior.nats
    monkeypatch.setattr(
        GaussianPrior, "nats", lambda self, x: correct(self, x) + math.log(self.std)
    )
    assert len(problems(small_flow)) == 2


def test_probes_without_unit_variance_are_detected(monkeypatch):
    def scaled(denoise, x_BCHW, probe_BCHW):
        return ode.trace(denoise, x_BCHW, None if probe_BCHW is None else 1.05 * probe_BCHW)

    monkeypatch.setattr(adaptive, "trace", scaled)
    assert len(problems(small_flow)) == 1  # the exact trace has no probe
