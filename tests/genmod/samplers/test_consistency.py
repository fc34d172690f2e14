"""Consistency tuning against a Gaussian, whose flow lines are known."""

import itertools
import math

import torch

from genmod.rng import rng_for
from genmod.samplers.consistency import PSEUDO_HUBER_C, consistency_loss, previous_level

S = 0.5


def denoiser(x, sigma_B):
    return S**2 / (S**2 + sigma_B[:, None, None, None] ** 2) * x


def end_of_the_flow(x, sigma_B):
    return S / (S**2 + sigma_B[:, None, None, None] ** 2).sqrt() * x


def pairs(t, r, count=4000):
    rng = rng_for(0, "tuning", range(count))
    y = S * rng.fold("y").normal(1, 4, 4, dtype=torch.float64)
    noise = rng.fold("n").normal(1, 4, 4, dtype=torch.float64)
    return y, noise, y.new_full((count,), t), y.new_full((count,), r)


def test_levels_approach_in_stages():
    t = torch.tensor([0.01, 1.0, 80.0], dtype=torch.float64)
    apart = [t - previous_level(t, stage, 0.0) for stage in range(5, 9)]
    for wider, nearer in itertools.pairwise(apart):
        assert torch.allclose(wider, 2 * nearer)
    assert torch.equal(
        previous_level(t, 1, 0.002)[:2], torch.zeros(2).double()
    )  # a denoiser's target
    assert math.isclose(float(previous_level(t, 1, 0.002)[2]), 40.0, rel_tol=1e-9)
    assert previous_level(t, 12, 0.02)[0] == 0  # below sigma_min is no noise


def test_loss_by_hand():
    y, noise, t, r = pairs(1.0, 0.6, count=3)
    target = denoiser(y + 0.6 * noise, r)
    error = (denoiser(y + noise, t) - target).square().flatten(1).mean(1)
    expected = ((error + PSEUDO_HUBER_C**2).sqrt() - PSEUDO_HUBER_C) / 0.4
    assert torch.allclose(consistency_loss(denoiser, y, noise, t, r), expected)
    first = consistency_loss(denoiser, y, noise, t, torch.zeros_like(r))
    error = (denoiser(y + noise, t) - y).square().flatten(1).mean(1)
    assert torch.allclose(first, (error + PSEUDO_HUBER_C**2).sqrt() - PSEUDO_HUBER_C)


def test_only_the_noisier_side_learns():
    y, noise, t, r = pairs(1.0, 0.6, count=3)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    calls = []

    def f(x, sigma_B):
        calls.append((sigma_B, torch.is_grad_enabled()))
        return weight * denoiser(x, sigma_B)

    consistency_loss(f, y, noise, t, r).mean().backward()
    assert weight.grad is not None
    assert [(float(s[0]), grad) for s, grad in calls] == [(0.6, False), (1.0, True)]


def test_minimisers_are_the_consistency_function_and_the_denoiser():
    """What answer at t, as a multiple of the flow's end, loses least: 1, or the denoiser's share of it."""

    def best(r):
        batch, weights = pairs(1.0, r), torch.linspace(0.3, 1.2, 46).tolist()

        def loss(weight):
            def f(x, sigma_B):
                return (weight if float(sigma_B[0]) == 1.0 else 1.0) * end_of_the_flow(x, sigma_B)

            return float(consistency_loss(f, *batch).mean())

        return min(weights, key=loss)

    assert math.isclose(best(0.9), 1.0, abs_tol=0.021)
    assert math.isclose(best(0.0), S / math.sqrt(S**2 + 1), abs_tol=0.021)
