"""Diffusion likelihoods with common mistakes: the family's density checks detect each of them."""

import math

import pytest
import torch

from genmod.distributions import dequantise
from genmod.distributions.closed_form import PointMasses
from genmod.likelihood import vlb
from genmod.models.diffusion.selftest import bound_checks, new_model_checks


def problems(checks):
    return [check.problem for check in checks if not check.passed]


def first_new_model_check():
    """A bound on the probability of pixels."""
    return [next(new_model_checks(0))]


@pytest.mark.slow
def test_correct_likelihoods_pass():
    assert problems(bound_checks(0)) == []
    assert problems(first_new_model_check()) == []


def test_a_wrong_bin_volume_is_detected(monkeypatch):
    """255 bins instead of 256."""

    def wrong(x_BCHW, rng, spec):
        y_BCHW, log_q_B = correct(x_BCHW, rng, spec)
        return y_BCHW, log_q_B - spec.dims * math.log(256 / 255)

    correct = dequantise.uniform
    monkeypatch.setattr(dequantise, "uniform", wrong)
    assert "wrong side" in problems(first_new_model_check())[0]


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_bound_with_a_wrong_factor_is_detected(factor, monkeypatch):
    correct = vlb.NoiseLevels.quantile

    def wrong(self, u_B):
        sigma_B, weight_B = correct(self, u_B)
        return sigma_B, factor * weight_B

    monkeypatch.setattr(vlb.NoiseLevels, "quantile", wrong)
    assert problems(bound_checks(0))


def test_a_bound_with_a_wrong_prior_term_is_detected(monkeypatch):
    monkeypatch.setattr(vlb, "prior_nats", lambda x_BCHW, sigma, prior: -torch.ones(len(x_BCHW)))
    assert any("wrong side" in problem for problem in problems(bound_checks(0)))


def test_a_worse_denoiser_makes_the_bound_looser(monkeypatch):
    correct = PointMasses.denoise
    monkeypatch.setattr(PointMasses, "denoise", lambda self, x, s: 0.97 * correct(self, x, s))
    assert any("looser" in problem for problem in problems(bound_checks(0)))
