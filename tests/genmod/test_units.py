"""Conversions between pixels, network units, nats and bits per dimension."""

import math

import pytest
import torch

from genmod import units


def test_pixels_survive_a_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(units.to_pixels(units.to_network(pixels)), pixels)


def test_bins_tile_the_range():
    x = units.to_network(torch.arange(256, dtype=torch.uint8), torch.float64)
    assert x[0] - units.HALF_BIN == -1.0
    assert x[-1] + units.HALF_BIN == 1.0
    low = units.dequantise(x, torch.zeros(256, dtype=torch.float64))
    assert torch.allclose(low, x - units.HALF_BIN)
    nearly_one = torch.full((256,), 1 - 2**-20, dtype=torch.float64)
    high = units.dequantise(x, nearly_one)
    assert torch.equal(units.to_pixels(high), torch.arange(256, dtype=torch.uint8))


def test_values_outside_the_range_become_edge_pixels():
    assert units.to_pixels(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_a_uniform_density_costs_eight_bits():
    dims = 12
    nats = dims * math.log(0.5) + units.log_bin_volume(dims)
    assert units.bits_per_dim(nats, dims) == pytest.approx(8.0)


def test_log_bin_volume_is_the_constant_seven():
    assert units.bits_per_dim(units.log_bin_volume(3), 3) == pytest.approx(7.0)


def test_two_levels_fill_two_halves():
    x = units.to_network(torch.tensor([0, 255], dtype=torch.uint8), torch.float64)
    u = torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert units.dequantise(x, u, 2).tolist() == [-0.75, 0.75]
    assert units.log_bin_volume(5, 2) == 0.0
    assert torch.equal(units.binarise(torch.tensor([-0.1, 0.2], dtype=torch.float64)), x)


@pytest.mark.parametrize(
    ("measure", "levels", "constant"),
    [
        (units.COUNTS, 256, 0),
        (units.NETWORK, 256, 7),
        (units.lebesgue(0, 1), 256, 8),
        (units.lebesgue(-1, 1), 2, 0),
        (units.lebesgue(-0.5, 1.5), 256, 7),
    ],
)
def test_the_constant_follows_from_the_range(measure, levels, constant):
    assert units.bits_per_dim(-12 * math.log(2.0), 3, measure, levels) == pytest.approx(
        4 + constant
    )


@pytest.mark.parametrize("measure", ["lebesgue", "lebesgue on R^D", "lebesgue[-1,1", ""])
def test_an_unknown_measure_is_refused(measure):
    with pytest.raises(ValueError, match="bits per dimension: got measure"):
        units.bits_per_dim(-1.0, 3, measure)


def test_a_uniform_density_of_network_images_is_eight_bits():
    assert units.bits_per_dim(-3 * math.log(2.0), 3, units.NETWORK) == pytest.approx(8)
