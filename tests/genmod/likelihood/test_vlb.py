"""The variational bound: with the true denoiser of data that are a few images, it is their log P."""

import itertools
import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from genmod import units
from genmod.distributions.closed_form import PointMasses
from genmod.likelihood import vlb
from genmod.likelihood.process import GaussianPrior, Process
from genmod.manifest import ImageSpec
from genmod.rng import rng_for

SPEC = ImageSpec(channels=1, height=2, width=4, classes=0)
ATOMS = PointMasses.images(5, SPEC)
SIGMA_MIN, SIGMA_MAX = 0.0005, 80.0


def process_of(denoise, spec, sigma_min, spread=0.5):
    prior = GaussianPrior(torch.zeros(1, 1, 1, dtype=torch.float64), math.hypot(SIGMA_MAX, spread))
    return Process(denoise, prior, sigma_min, SIGMA_MAX, spread, spec, given="")


def true_denoiser(x_BCHW, sigma_B):
    return ATOMS.denoise(x_BCHW.flatten(1), sigma_B).view_as(x_BCHW)


PROCESS = process_of(true_denoiser, SPEC, SIGMA_MIN)


def bounds(repeats, terms=None, nfe=32):
    """(repeats, atoms): evaluations of the bound for each atom."""
    x_BCHW = ATOMS.point_MD.view(-1, *SPEC.shape)
    rng = rng_for(1, "vlb", range(len(x_BCHW)))
    return torch.stack(
        [
            vlb.variational_bound(PROCESS, x_BCHW, rng.at(repeat), terms=terms, nfe=nfe)
            for repeat in range(repeats)
        ]
    )


def test_with_infinitely_many_levels_it_is_log_p():
    bounds_RM = bounds(300)
    stderr_M = bounds_RM.std(0) / math.sqrt(300)
    error_M = bounds_RM.mean(0) - ATOMS.weight_M.log()
    assert stderr_M.max() < 0.2
    assert (error_M.abs() < 4 * stderr_M + 1e-2).all()


def test_the_number_of_calls_does_not_shift_it():
    few, many = bounds(600, nfe=4), bounds(100, nfe=48)
    gap_M = few.mean(0) - many.mean(0)
    stderr_M = (few.var(0) / 600 + many.var(0) / 100).sqrt()
    assert (gap_M.abs() < 4 * stderr_M).all()


def test_more_terms_are_tighter_and_all_below_log_p():
    truth = ATOMS.weight_M.log().mean().item()
    means = [bounds(100, terms=terms, nfe=16).mean().item() for terms in (16, 64, 1000)]
    assert means[0] < means[1] < means[2] < truth + 0.2
    assert means[0] < truth - 0.5


def test_all_terms_are_summed_where_calls_are_terms():
    noise_levels = vlb.NoiseLevels(0.1, 10.0, 7)
    u_B = (torch.arange(7, dtype=torch.float64) + 0.5) / 7
    sigma_B, weight_B = noise_levels.quantile(u_B)
    edges = [0.1 * 100 ** (i / 7) for i in range(8)]
    for i in range(7):
        assert sigma_B[i].item() == pytest.approx(edges[i + 1])
        expected = 0.5 * (edges[i] ** -2 - edges[i + 1] ** -2)
        assert weight_B[i].item() / 7 == pytest.approx(expected)


def test_many_terms_are_the_integral():
    u_B = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    means = [vlb.NoiseLevels(0.01, 5.0, t).quantile(u_B)[1].mean().item() for t in (None, 10_000)]
    assert means[0] == pytest.approx(0.5 * (0.01**-2 - 5.0**-2), rel=1e-4)
    assert means[1] == pytest.approx(means[0], rel=1e-3)


def test_prior_term_is_the_divergence():
    x_BCHW = rng_for(0, "x", range(4)).normal(3, 2, 2, dtype=torch.float64)
    mean_C11 = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)[:, None, None]
    nats_B = vlb.prior_nats(x_BCHW, 2.0, GaussianPrior(mean_C11, 2.5))
    wide = Normal(mean_C11.expand_as(x_BCHW), 2.5)
    expected_B = kl_divergence(Normal(x_BCHW, 2.0), wide).flatten(1).sum(1)
    torch.testing.assert_close(nats_B, expected_B)


@pytest.mark.parametrize(("levels", "sigma"), [(256, 0.002), (256, 0.02), (2, 0.5), (2, 0.002)])
def test_decoder_is_normalised_over_the_pixels_levels(levels, sigma):
    spec = ImageSpec(channels=1, height=2, width=4, classes=0, levels=levels)
    values = torch.arange(256) if levels == 256 else torch.tensor([0, 255])
    pixels = values[torch.arange(8) * (levels - 1) // 7].view(1, *spec.shape)  # both edges too
    x_BCHW = units.to_network(pixels, torch.float64)
    rng = rng_for(0, "d", range(1))
    nats_B = vlb.decoder_nats(x_BCHW, rng, sigma, spec)
    noisy_BCHW = x_BCHW + sigma * rng.normal(*spec.shape, dtype=torch.float64)
    places_K = units.to_network(values, torch.float64)
    each = -0.5 * ((noisy_BCHW[..., None] - places_K) / sigma).square()
    own_BCHW = each.log_softmax(-1).gather(-1, (pixels * (levels - 1) // 255)[..., None])
    torch.testing.assert_close(nats_B, -own_BCHW.flatten(1).sum(1))


def test_probabilities_of_all_images_are_bounded():
    """Of two binary pixels there are four images: exp of the bound's mean adds up to at most 1."""
    spec = ImageSpec(channels=1, height=1, width=2, classes=0, levels=2)
    images = torch.tensor(list(itertools.product((0, 255), repeat=2)))
    x_BCHW = units.to_network(images, torch.float64).view(-1, *spec.shape)

    def denoise(x_BCHW, sigma_B):
        """Of independent fair pixels."""
        return torch.tanh(x_BCHW / sigma_B[:, None, None, None] ** 2) * (1 - 1 / 256)

    process, rng = process_of(denoise, spec, 0.01, 1.0), rng_for(0, "b", range(4))
    draws = [
        vlb.variational_bound(process, x_BCHW, rng.at(r), terms=None, nfe=64) for r in range(50)
    ]
    assert 0.95 < torch.stack(draws).mean(0).exp().sum().item() < 1.03


def test_training_loss_is_the_bound_per_dimension():
    """Over many rows, the loss of one call each is the mean of the bound, in nats per dimension."""
    rows = 6000
    which_B = torch.arange(rows) % 5
    x_BCHW = ATOMS.point_MD[which_B].view(-1, *SPEC.shape)
    total, terms = vlb.training_loss(PROCESS, x_BCHW, rng_for(2, "train", range(rows)))
    expected = -ATOMS.weight_M.log().mean().item() / SPEC.dims
    assert total.item() == pytest.approx(expected, abs=0.03)
    assert terms["bound_bits_per_dim"].item() == pytest.approx(total.item() / math.log(2))
    assert not any(term.requires_grad for term in terms.values())
