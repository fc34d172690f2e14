"""A generator under declared noise. The generator is linear, so that everything is known of it."""

from __future__ import annotations

import math

import pytest
import torch

from genmod import units
from genmod.distributions.closed_form import LinearGaussian
from genmod.errors import GenmodError, Unscorable
from genmod.interface.batch import Batch
from genmod.likelihood.ais import AISOptions
from genmod.likelihood.noisy_generator import NoisyGenerator, NoisyGeneratorScore
from genmod.manifest import ImageSpec
from genmod.rng import rng_for

SPEC = ImageSpec(channels=1, height=6, width=6)
NOISE = 0.12
EXAMPLE = LinearGaussian.example(SPEC.dims, 3, NOISE)
TRUTH = LinearGaussian(0.2 * EXAMPLE.weight_DZ, 0.1 * EXAMPLE.mean_D, NOISE)
OPTIONS = AISOptions(temperatures=150, chains=8, pilot_temperatures=40)


def decode(z_NZ, labels_N):
    assert labels_N is None
    return (z_NZ @ TRUTH.weight_DZ.T + TRUTH.mean_D).view(-1, *SPEC.shape)


MODEL = NoisyGenerator(decode, 3, SPEC, torch.float64)


def images(rows, seed=0):
    """Draws of the model itself, as pixels."""
    x_BD = TRUTH.draw(rng_for(seed, "images", range(rows)))
    pixels = units.to_pixels(x_BD.view(-1, *SPEC.shape))
    return Batch(pixels, None, torch.arange(rows))


def rng(batch):
    return rng_for(1, "score", batch.index_B)


def test_the_density_is_the_one_in_closed_form():
    batch = images(30)
    options = NoisyGeneratorScore(sigma=NOISE, measure="lebesgue", ais=OPTIONS)
    found = MODEL.log_prob(batch, rng(batch), options)
    error_B = found.nats_B - TRUTH.nats(batch.x_BCHW(torch.float64).flatten(1))
    stderr = float(error_B.std()) / math.sqrt(30)
    assert float(error_B.mean()) < 3 * stderr
    assert float(error_B.mean()) > -0.5
    assert (found.label, found.measure) == ("stochastic_lower_bound", "lebesgue[-1,1]")
    assert found.estimator == "ais-hmc"
    assert "sigma 0.12" in found.of
    assert found.budget["temperatures"] == 150
    assert found.budget["chains"] == 8


def test_pixels_have_the_density_times_the_volume_of_a_bin():
    batch = images(20)
    options = NoisyGeneratorScore(sigma=NOISE, ais=OPTIONS)
    found = MODEL.log_prob(batch, rng(batch), options)
    assert found.measure == "counts"
    density_B = TRUTH.nats(batch.x_BCHW(torch.float64).flatten(1))
    error_B = found.nats_B - density_B - units.log_bin_volume(SPEC.dims)
    assert abs(float(error_B.mean())) < 0.5


@pytest.mark.slow
def test_probabilities_of_all_images_add_up_to_one():
    """Four binary pixels, 16 images: 1 less what the bound is loose by."""
    spec = ImageSpec(channels=1, height=2, width=2, levels=2)
    four = NoisyGenerator(
        lambda z_NZ, _: torch.cat((z_NZ, 0.5 - z_NZ**2), 1).view(-1, 1, 2, 2),
        2,
        spec,
        torch.float64,
    )
    every = torch.cartesian_prod(*[torch.tensor([0, 255])] * 4).to(torch.uint8)
    batch = Batch(every.view(-1, 1, 2, 2), None, torch.arange(16))
    many = OPTIONS.model_copy(update={"chains": 64})
    found = four.log_prob(batch, rng(batch), NoisyGeneratorScore(sigma=0.7, ais=many))
    p_B = found.nats_B.exp()
    stderr = float((p_B * found.stderr_B).square().sum().sqrt())
    assert stderr < 0.02
    assert float(p_B.sum()) == pytest.approx(1, abs=4 * stderr)


@pytest.mark.parametrize("measure", ["counts", "lebesgue"])
def test_sigma_is_fitted_to_held_out_rows(measure):
    """Of R rows sigma has a standard error of about sigma / sqrt(2 R (D - Z))."""
    held_out = images(40, seed=5)
    options = NoisyGeneratorScore(
        sigma="fit", measure=measure, ais=OPTIONS, fit_rounds=80, simulated_rows=0
    )
    ready = MODEL.prepare(held_out, rng(held_out), options)
    stderr = NOISE / math.sqrt(2 * 40 * (SPEC.dims - 3))
    assert ready.options.sigma == pytest.approx(NOISE, abs=4 * stderr)
    assert ready.metadata["sigma"] == ready.options.sigma
    assert abs(ready.metadata["sigma_drift"]) < 0.05
    assert ready.options.model_copy(update={"sigma": "fit"}) == options


def test_the_fit_maximises_the_estimate():
    batch = images(30, seed=6)
    few = OPTIONS.model_copy(update={"temperatures": 60, "chains": 4})
    options = NoisyGeneratorScore(sigma="fit", ais=few, fit_rounds=80, simulated_rows=0)
    sigma = MODEL.prepare(batch, rng(batch), options).options.sigma
    means = {
        factor: float(
            MODEL.log_prob(
                batch, rng(batch), options.model_copy(update={"sigma": factor * sigma})
            ).nats_B.mean()
        )
        for factor in (0.8, 1.0, 1.25)
    }
    assert means[1.0] > max(means[0.8], means[1.25]) + 0.1


@pytest.mark.slow
def test_the_gap_of_both_bounds_is_reported():
    options = NoisyGeneratorScore(sigma=NOISE, ais=OPTIONS, simulated_rows=20)
    metadata = MODEL.prepare(None, rng_for(0, "prepare", range(0)), options).metadata
    assert metadata["gap_rows"] == 20
    assert metadata["gap_nats"] == pytest.approx(
        metadata["simulated_upper_nats"] - metadata["simulated_lower_nats"]
    )
    assert -3 * metadata["gap_nats_stderr"] < metadata["gap_nats"] < 2.0


def test_an_unidentifiable_sigma_is_an_error():
    blank = NoisyGenerator(lambda z_NZ, _: 0 * z_NZ[:, :1, None, None].expand(-1, 1, 6, 6), 3,
                         SPEC.model_copy(update={"levels": 2}), torch.float64)  # fmt: skip
    checker = (255 * (torch.arange(36) % 2)).to(torch.uint8).view(1, 1, 6, 6).expand(4, -1, -1, -1)
    batch = Batch(checker, None, torch.arange(4))
    options = NoisyGeneratorScore(sigma="fit", ais=AISOptions.tiny(), fit_rounds=40)
    faint = NoisyGenerator(lambda z, y: blank.decode(z, y) + 0.01, 3, blank.spec, torch.float64)
    with pytest.raises(GenmodError, match="the end of"):
        faint.prepare(batch, rng(batch), options)


def test_without_noise_there_is_no_density():
    with pytest.raises(Unscorable, match=r"set model\.NAME\.score\.sigma: fit"):
        NoisyGeneratorScore().require_sigma("a generator has none")
    NoisyGeneratorScore(sigma="fit").require_sigma("")


def test_a_probe_returns_the_time_factor():
    options = NoisyGeneratorScore(sigma="fit", ais=OPTIONS)
    little, times = options.probe()
    assert isinstance(little.sigma, float)
    assert times == pytest.approx(options.ais.moves() / little.ais.moves())
    assert times > 10
