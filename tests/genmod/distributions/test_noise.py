"""Gaussian noise around a decoder's image: masses of bins, tails, draws."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm

from genmod import units
from genmod.distributions.noise import BinnedGaussian, PointGaussian, log_interval
from genmod.rng import rng_for

ALL_x = units.to_network(torch.arange(256, dtype=torch.uint8), torch.float64)


@pytest.mark.parametrize("sigma", [0.002, 0.1, 3.0])
@pytest.mark.parametrize("mean", [-1.4, -0.3, 0.0, 0.999])
def test_bins_share_all_of_the_mass(sigma, mean):
    raw = torch.full((256, 1, 1, 1), mean, dtype=torch.float64)
    nats = BinnedGaussian(sigma).nats(raw, ALL_x.view(-1, 1, 1, 1))
    assert float(nats.exp().sum()) == pytest.approx(1, abs=1e-12)
    two = BinnedGaussian(sigma, 2).nats(raw[:2], ALL_x[[0, 255]].view(-1, 1, 1, 1)).exp()
    assert two.tolist() == pytest.approx([norm.cdf(-mean / sigma), norm.cdf(mean / sigma)])


@pytest.mark.parametrize("low", [-40.0, -12.0, -0.05, 0.0, 3.0, 25.0])
def test_an_interval_in_the_tail_keeps_its_digits(low):
    high = low + 0.1
    ends = torch.tensor([low, high], dtype=torch.float64, requires_grad=True)
    found = log_interval(ends[0], ends[1])
    nearest = min(abs(low), abs(high))
    # The other tail of the same mass, where scipy subtracts numbers that are small.
    mass = norm.logsf(nearest) + math.log1p(
        -math.exp(norm.logsf(nearest + 0.1) - norm.logsf(nearest))
    )
    if low * high < 0:
        mass = math.log(norm.cdf(high) - norm.cdf(low))
    assert float(found.detach()) == pytest.approx(mass, rel=1e-9)
    (slope,) = torch.autograd.grad(found, ends)
    wanted = [-math.exp(norm.logpdf(low) - mass), math.exp(norm.logpdf(high) - mass)]
    assert slope.tolist() == pytest.approx(wanted, rel=1e-6)


def test_slopes_are_finite_far_outside_the_range():
    raw = torch.tensor([-9.0, -1.0, 1.0, 9.0]).view(-1, 1, 1, 1).expand(4, 1, 16, 16).clone()
    raw.requires_grad_(True)
    x_BCHW = ALL_x.view(1, 1, 16, 16).expand(4, -1, -1, -1)
    nats_B = BinnedGaussian(0.02).nats(raw, x_BCHW)
    (slope,) = torch.autograd.grad(nats_B.sum(), raw)
    assert nats_B.isfinite().all()
    assert slope.isfinite().all()


def test_a_small_bin_has_the_density_times_its_width():
    generator = torch.Generator().manual_seed(0)
    raw = 0.3 * torch.randn(5, 2, 3, 4, generator=generator, dtype=torch.float64)
    pixels = torch.randint(60, 190, raw.shape, generator=generator).to(torch.uint8)
    x_BCHW = units.to_network(pixels, torch.float64)
    counts_B = BinnedGaussian(0.3).nats(raw, x_BCHW)
    points_B = PointGaussian(0.3).nats(raw, x_BCHW)
    torch.testing.assert_close(counts_B, points_B + units.log_bin_volume(24), rtol=1e-5, atol=0)
    exact = torch.distributions.Normal(raw, 0.3).log_prob(x_BCHW).sum((1, 2, 3))
    torch.testing.assert_close(points_B, exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("levels", [2, 256])
def test_draws_follow_the_masses(levels):
    likelihood, copies = BinnedGaussian(0.5, levels), 20_000
    raw = torch.full((copies, 1, 1, 1), 0.4, dtype=torch.float64)
    x_BCHW = likelihood.draw(raw, rng_for(0, "draw", range(copies)))
    pixels_B = units.to_pixels(x_BCHW).flatten().long()
    seen = torch.bincount(pixels_B, minlength=256)[[0, 100, 255]] / copies
    wanted = likelihood.nats(raw[:3], ALL_x[[0, 100, 255]].view(-1, 1, 1, 1)).exp()
    if levels == 2:
        seen, wanted = seen[[0, 2]], wanted[[0, 2]]
    assert ((seen - wanted).abs() < 4 * (wanted / copies).sqrt() + 1e-3).all()
    assert likelihood.mean(3 * raw[:1]).abs().max() <= 1
