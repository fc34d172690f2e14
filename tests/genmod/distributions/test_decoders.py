"""Likelihoods of pixels: they sum to one, draws follow them, dimensions are summed over."""

from __future__ import annotations

import pytest
import torch

from genmod import units
from genmod.distributions.decoders import Bernoulli, Categorical, DiscretisedLogistic, bin_nats
from genmod.distributions.noise import LearnedGaussian, LearnedSigma
from genmod.rng import rng_for

every_likelihood = pytest.mark.parametrize(
    "likelihood",
    [
        Bernoulli(),
        DiscretisedLogistic(),
        DiscretisedLogistic(3),
        Categorical(),
        LearnedGaussian(LearnedSigma(0.4).double()),
    ],
    ids=lambda likelihood: f"{type(likelihood).__name__}-{likelihood.parameters}",
)

ALL_x = units.to_network(torch.arange(256, dtype=torch.uint8), torch.float64)
"""Every pixel."""


def spread_raw(likelihood, count: int, spread: float = 3.0, dtype=torch.float64) -> torch.Tensor:
    """Decoder outputs for one-pixel images, (count, P, 1, 1)."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(count, likelihood.parameters, 1, 1, generator=generator, dtype=torch.float64)
    return (spread * raw).to(dtype)


def table(likelihood, raw_BPHW: torch.Tensor) -> torch.Tensor:
    """Probability of each pixel value, (B, 256)."""
    nats = [likelihood.nats(raw_BPHW, x.expand(len(raw_BPHW), 1, 1, 1)) for x in ALL_x]
    return torch.stack(nats, 1).exp()


@pytest.mark.parametrize("components", [1, 2, 5])
@pytest.mark.parametrize("spread", [0.3, 3.0, 30.0])
def test_discretised_logistic_sums_to_one_over_256_levels(components, spread):
    likelihood = DiscretisedLogistic(components)
    total_B = table(likelihood, spread_raw(likelihood, 50, spread)).sum(1)
    torch.testing.assert_close(total_B, torch.ones(50, dtype=torch.float64), rtol=0, atol=1e-12)


def test_categorical_gives_each_value_a_probability_of_its_own():
    raw_BPHW = spread_raw(Categorical(), 20)
    p_BL = table(Categorical(), raw_BPHW)
    torch.testing.assert_close(p_BL, raw_BPHW.flatten(1).softmax(1), rtol=1e-12, atol=0)
    mean_B = Categorical().mean(raw_BPHW).flatten()
    torch.testing.assert_close(mean_B, (p_BL * ALL_x).sum(1), rtol=1e-6, atol=1e-6)


def test_bernoulli_sums_to_one_over_two_levels():
    raw_BPHW = spread_raw(Bernoulli(), 50, 10.0)
    off, on = (Bernoulli().nats(raw_BPHW, x.expand(50, 1, 1, 1)).exp() for x in ALL_x[[0, 255]])
    torch.testing.assert_close(off + on, torch.ones(50, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(on, raw_BPHW.flatten().sigmoid(), rtol=1e-12, atol=0)


def test_bin_mass_is_the_difference_of_the_distribution_function():
    location, log_scale = torch.tensor(0.3).double(), torch.tensor(-2.0).double()
    edges = torch.linspace(-1, 1, 257, dtype=torch.float64)[1:-1]
    below = torch.sigmoid((edges - location) / log_scale.exp())
    mass = torch.diff(below, prepend=torch.zeros(1), append=torch.ones(1))
    torch.testing.assert_close(bin_nats(ALL_x, location, log_scale).exp(), mass, rtol=1e-9, atol=0)


@pytest.mark.parametrize("log_scale", [-7.6, -3.0, 1.0])
@pytest.mark.parametrize("location", [-50.0, -1.0, 0.0, 0.7, 50.0])
def test_bin_mass_is_finite_and_accurate_in_float32(location, log_scale):
    exact = bin_nats(ALL_x, torch.tensor(location).double(), torch.tensor(log_scale).double())
    where = torch.full((256,), location, requires_grad=True)
    scale = torch.full((256,), log_scale, requires_grad=True)
    rough = bin_nats(ALL_x.float(), where, scale)
    torch.testing.assert_close(rough.double(), exact, rtol=1e-4, atol=2e-3)
    slopes = torch.autograd.grad(rough.sum(), (where, scale))
    assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize(
    "likelihood", [DiscretisedLogistic(1), DiscretisedLogistic(3), Categorical()]
)
def test_draws_follow_the_probabilities(likelihood):
    copies = 40_000
    raw_BPHW = spread_raw(likelihood, 4, 1.0)
    for row in range(4):
        one = raw_BPHW[row : row + 1]
        x_BCHW = likelihood.draw(one.expand(copies, -1, 1, 1), rng_for(row, "draw", range(copies)))
        pixels_B = units.to_pixels(x_BCHW).flatten().long()
        torch.testing.assert_close(x_BCHW.flatten(), ALL_x[pixels_B])
        wanted_L = table(likelihood, one)[0]
        got_L = torch.bincount(pixels_B, minlength=256) / copies
        stderr_L = (wanted_L * (1 - wanted_L) / copies).sqrt() + 1 / copies
        assert ((got_L - wanted_L).abs() < 5 * stderr_L).all()


def test_binary_draws_follow_the_probabilities_and_are_black_or_white():
    copies, raw = 20_000, torch.tensor(-0.4)
    x_BCHW = Bernoulli().draw(raw.expand(copies, 1, 1, 1), rng_for(0, "draw", range(copies)))
    assert set(units.to_pixels(x_BCHW).unique().tolist()) == {0, 255}
    on = float((x_BCHW > 0).double().mean())
    assert abs(on - float(raw.sigmoid())) < 4 * (0.25 / copies) ** 0.5
    white, black = ALL_x[255] * float(raw.sigmoid()), ALL_x[0] * float((-raw).sigmoid())
    assert float(Bernoulli().expected(raw)) == pytest.approx(float(white + black), abs=1e-6)
    assert float(Bernoulli().mean(raw)) == pytest.approx(float(ALL_x[0]), abs=1e-6)


@pytest.mark.parametrize("components", [1, 3])
def test_the_mean_is_the_expected_pixel_within_half_a_bin(components):
    likelihood = DiscretisedLogistic(components)
    raw_BPHW = spread_raw(likelihood, 50)
    wanted_B = (table(likelihood, raw_BPHW) * ALL_x).sum(1)
    got_B = likelihood.mean(raw_BPHW).flatten()
    assert float((got_B - wanted_B).abs().max()) < units.HALF_BIN
    assert got_B.abs().max() <= 1


@every_likelihood
def test_twice_the_dimensions_twice_the_nats(likelihood):
    generator = torch.Generator().manual_seed(1)
    shape = (3, likelihood.parameters * 3, 4, 5)
    raw_BPHW = torch.randn(shape, generator=generator, dtype=torch.float64)
    pixels_BCHW = torch.randint(0, 256, (3, 3, 4, 5), generator=generator).to(torch.uint8)
    x_BCHW = units.to_network(pixels_BCHW, torch.float64)
    once_B = likelihood.nats(raw_BPHW, x_BCHW)
    assert once_B.shape == (3,)
    twice_B = likelihood.nats(torch.cat((raw_BPHW,) * 2, 2), torch.cat((x_BCHW,) * 2, 2))
    torch.testing.assert_close(twice_B, 2 * once_B, rtol=1e-13, atol=0)


@every_likelihood
def test_channels_have_parameters_of_their_own(likelihood):
    raw_BPHW = torch.zeros(1, likelihood.parameters * 3, 1, 1, dtype=torch.float64)
    x_BCHW = torch.full((1, 3, 1, 1), 0.5, dtype=torch.float64)
    raw_BPHW.requires_grad_(True)
    (slope,) = torch.autograd.grad(likelihood.nats(raw_BPHW, x_BCHW).sum(), raw_BPHW)
    each_PC = slope.view(likelihood.parameters, 3)
    torch.testing.assert_close(each_PC[:, 0], each_PC[:, 2])
    assert (each_PC != 0).any(0).all()
    assert likelihood.draw(raw_BPHW.detach(), rng_for(0, "x", [0])).shape == (1, 3, 1, 1)
