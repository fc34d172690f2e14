"""Points of pixels' bins, and the densities that they are drawn with."""

import math

import pytest
import torch
from torch.distributions import Normal

from genmod import units
from genmod.distributions import dequantise
from genmod.manifest import ImageSpec
from genmod.rng import rng_for

GREY = ImageSpec(channels=1, height=1, width=1, classes=0)
STD = 0.002


def drawn(rows, options, spec=GREY):
    pixels = rng_for(0, "x", range(rows)).integers(spec.levels, *spec.shape)
    pixels = (pixels * 255 // (spec.levels - 1)).to(torch.uint8)
    x_BCHW = units.to_network(pixels, torch.float64)
    y_BCHW, log_q_B = options(x_BCHW, rng_for(1, "u", range(rows)), spec)
    return pixels, x_BCHW, y_BCHW, log_q_B


def normal(x_BCHW, rng, spec):
    return dequantise.truncated_normal(x_BCHW, rng, spec, STD)


@pytest.mark.parametrize("options", [dequantise.uniform, normal], ids=["uniform", "normal"])
@pytest.mark.parametrize("levels", [2, 256])
def test_points_stay_in_their_bins(options, levels):
    spec = ImageSpec(channels=3, height=4, width=5, classes=0, levels=levels)
    pixels, _, y_BCHW, log_q_B = drawn(50, options, spec)
    if levels == 2:
        y_BCHW = units.binarise(y_BCHW)
    assert torch.equal(units.to_pixels(y_BCHW), pixels)
    assert log_q_B.shape == (50,)
    assert log_q_B.dtype == torch.float64


@pytest.mark.parametrize("options", [dequantise.uniform, normal], ids=["uniform", "normal"])
def test_the_mean_of_one_over_q_is_the_bins_width(options):
    _, _, _, log_q_B = drawn(40_000, options)
    over_B = (-log_q_B).exp()
    slack = 4 * over_B.std().item() / 200
    assert over_B.mean().item() == pytest.approx(2 / 256, abs=slack + 1e-12)


def test_normal_noise_has_the_cut_normal_distribution():
    _, x_BCHW, y_BCHW, log_q_B = drawn(40_000, normal)
    noise_B = (y_BCHW - x_BCHW).flatten()
    assert noise_B.abs().max() <= units.HALF_BIN
    plain = Normal(0.0, STD)
    edge = plain.cdf(torch.tensor(units.HALF_BIN, dtype=torch.float64))
    for at in (-0.003, -0.001, 0.0, 0.002):
        expected = ((plain.cdf(torch.tensor(at).double()) - 1 + edge) / (2 * edge - 1)).item()
        share = (noise_B < at).double().mean().item()
        assert abs(share - expected) < 4 * math.sqrt(0.25 / 40_000)
    expected_B = plain.log_prob(noise_B) - (2 * edge - 1).log()
    torch.testing.assert_close(log_q_B, expected_B)
