"""Estimators with the mistakes that people make: the self-test catches each of them."""

import math

import pytest
import torch

from genmod.distributions import dequantise
from genmod.likelihood import adaptive, ode, vlb
from genmod.likelihood.process import GaussianPrior
from genmod.selftest import diffusions, flows, probability_flow
from genmod.selftest.density import run_benches
from genmod.selftest.truths import IsotropicMixture, PointMasses


def faults(*benches):
    return [check.fault for check in run_benches(benches) if not check.holds]


def small_flow(seed):
    """The adaptive checks of one bench."""
    ring = IsotropicMixture.ring(6, 0.5, 0.1)
    for draws in (0, 8):
        yield probability_flow._check(ring, "ring", seed, rows=40, draws=draws, steps=None)


def atoms(seed):
    yield from diffusions._atoms(seed)


def new_model(seed):
    """The first check alone: a bound on the pixels' probability."""
    yield next(diffusions._new_model(seed))


@pytest.mark.slow
def test_what_is_right_passes():
    assert faults(small_flow, atoms, new_model) == []


def test_a_trace_of_the_wrong_sign_is_caught(monkeypatch):
    def backwards(denoise, x_BCHW, probe_BCHW):
        clean_BCHW, trace_B = ode.trace(denoise, x_BCHW, probe_BCHW)
        return clean_BCHW, -trace_B

    monkeypatch.setattr(adaptive, "trace", backwards)
    assert len(faults(small_flow)) == 2


def test_a_prior_at_the_wrong_end_is_caught(monkeypatch):
    """The equation's start taken for its end, which makes bits per dimension of 31 somewhere else."""
    right = GaussianPrior.nats
    monkeypatch.setattr(GaussianPrior, "nats", lambda self, x: right(self, x / 100))
    assert len(faults(small_flow)) == 2


def test_a_prior_without_its_volume_is_caught(monkeypatch):
    right = GaussianPrior.nats
    monkeypatch.setattr(GaussianPrior, "nats", lambda self, x: right(self, x) + math.log(self.std))
    assert len(faults(small_flow)) == 2


def test_probes_that_are_not_of_unit_variance_are_caught(monkeypatch):
    def longer(denoise, x_BCHW, probe_BCHW):
        return ode.trace(denoise, x_BCHW, None if probe_BCHW is None else 1.05 * probe_BCHW)

    monkeypatch.setattr(adaptive, "trace", longer)
    assert len(faults(small_flow)) == 1  # the exact trace has no probe


def test_a_wrong_volume_of_bins_is_caught(monkeypatch):
    """255 bins instead of 256."""

    def wrong(x_BCHW, rng, spec):
        y_BCHW, log_q_B = right(x_BCHW, rng, spec)
        return y_BCHW, log_q_B - spec.dims * math.log(256 / 255)

    right = dequantise.uniform
    monkeypatch.setattr(dequantise, "uniform", wrong)
    assert "wrong side" in faults(new_model)[0]


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_bound_with_a_lost_factor_is_caught(factor, monkeypatch):
    right = vlb.NoiseLevels.at

    def wrong(self, u_B):
        sigma_B, weight_B = right(self, u_B)
        return sigma_B, factor * weight_B

    monkeypatch.setattr(vlb.NoiseLevels, "at", wrong)
    assert faults(atoms)


def test_a_bound_with_a_wrong_prior_term_is_caught(monkeypatch):
    monkeypatch.setattr(vlb, "prior_nats", lambda x_BCHW, sigma, prior: -torch.ones(len(x_BCHW)))
    assert any("wrong side" in fault for fault in faults(atoms))


def test_a_denoiser_that_is_worse_is_looser(monkeypatch):
    right = PointMasses.denoise
    monkeypatch.setattr(PointMasses, "denoise", lambda self, x, sigma: 0.97 * right(self, x, sigma))
    assert any("looser" in fault for fault in faults(atoms))


@pytest.mark.slow
def test_a_flow_that_forgets_the_volume_of_its_box_is_caught(monkeypatch):
    """The check of the integral needs no training."""
    spec = flows.ImageSpec(channels=1, height=1, width=2, classes=0)
    stats = flows.DataStats(mean=(0.0,), std=(1.0,))
    model = flows.ModelConfig(family="flow", net={}, spec=spec, stats=stats).build()
    assert flows._mass_of_pairs(model, 0).holds
    wrong = type(model).log_prob

    def log_prob(self, batch, rng, options):
        score = wrong(self, batch, rng, options)
        return flows.replace(score, nats_B=score.nats_B + 0.5 * math.log(2))

    monkeypatch.setattr(type(model), "log_prob", log_prob)
    assert "off by" in flows._mass_of_pairs(model, 0).fault
