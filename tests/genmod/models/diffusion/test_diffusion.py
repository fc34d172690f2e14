"""The diffusion family. A new net gives zeros, so a new model is exactly N(0, sigma_data^2) of each pixel:
its samples and its likelihood are known in closed form."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch.distributions import Normal

from genmod import units
from genmod.config import canonical_json
from genmod.errors import ConfigError, Unscorable
from genmod.interface.batch import Batch
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.models.diffusion import DiffusionConfig, DiffusionSample, DiffusionScore, Model
from genmod.rng import rng_for
from genmod.samplers.schedule import TrainingNoise

GREY = ImageSpec(channels=1, height=4, width=4, classes=3)
RGB = ImageSpec(channels=3, height=4, width=6)
SIGMA_DATA = 0.25


def build(spec=GREY, mean=0.0, dtype=torch.float64, **net):
    """``mean`` is of the data, the centre of the model's Gaussian."""
    stats = DataStats(mean=(mean,) * spec.channels, std=(SIGMA_DATA,) * spec.channels)
    config = DiffusionConfig.tiny().model_copy(update=net)
    model = ModelConfig(
        family="diffusion", net=config.model_dump(mode="json"), spec=spec, stats=stats
    ).build()
    assert isinstance(model, Model)
    return model.to(dtype)


def trained(spec=GREY, **net):
    """Weights as after some training: nothing is zero any more."""
    model = build(spec, **net)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def batch(rows, spec=GREY, std=SIGMA_DATA):
    rng = rng_for(9, "images", range(rows))
    pixels = units.to_pixels(std * rng.normal(*spec.shape))
    labels = torch.arange(rows) % spec.classes if spec.classes else None
    return Batch(pixels, labels, torch.arange(rows))


# Loss


def test_loss_by_hand():
    """A new model's D is mean + c_skip (x - mean); the rest written out from the addressed numbers."""
    mean = 0.1
    model, rows = build(mean=mean, label_drop=0.0), batch(4)
    rng = rng_for(0, "train", range(4))
    losses = model.loss("denoise", rows, rng, 0)
    u_B = rng.fold("level").uniform(2, dtype=torch.float64)[:, 0] + 2.0**-33
    sigmas = TrainingNoise().quantile(u_B, 0.002, 80.0)
    u = rng.fold("dequantise").uniform(1, 4, 4, dtype=torch.float64)
    y = (rows.pixels_BCHW + u) / 128 - 1
    expected, noise_mse = [], []
    for b in range(4):
        sigma = sigmas[b].item()
        noise = sigma * rng.fold("noise").normal(1, 4, 4, dtype=torch.float64)[b]
        c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
        clean = mean + c_skip * (y[b] + noise - mean)
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        expected.append(weight * ((clean - y[b]) ** 2).mean().item())
        noise_mse.append(((clean - y[b]) ** 2).mean().item() / sigma**2)
    assert losses.total.item() == pytest.approx(sum(expected) / 4, rel=1e-9)
    assert losses.terms["edm_loss"].item() == losses.total.item()
    assert losses.terms["noise_mse"].item() == pytest.approx(sum(noise_mse) / 4, rel=1e-9)


def test_a_new_model_loses_one_on_data_of_its_variance():
    model, rows = build(), batch(2000)
    loss = model.loss("denoise", rows, rng_for(0, "train", range(2000)), 0).total
    assert loss.item() == pytest.approx(1.0, abs=0.05)


def test_loss_does_not_depend_on_the_split():
    model, rows, rng = trained(), batch(6), rng_for(0, "train", range(6))
    whole = model.loss("denoise", rows, rng, 0).total
    halves = [
        model.loss("denoise", rows.rows(s), rng.rows(s), 0).total for s in (slice(3), slice(3, 6))
    ]
    assert torch.allclose(whole, (halves[0] + halves[1]) / 2, rtol=0, atol=1e-10)


@pytest.mark.parametrize("spec", [GREY, RGB], ids=["grey", "rgb"])
def test_gradients_reach_every_parameter(spec):
    model = trained(spec, label_drop=0.5)
    model.loss("denoise", batch(24, spec), rng_for(0, "train", range(24)), 0).total.backward()
    (phase,) = model.phases()
    moved = model.parameters_of(phase)
    assert set(moved) == {name for name, _ in model.named_parameters()}
    for name, parameter in moved.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_labels_are_dropped_as_often_as_asked():
    """The row without label of the class embedding learns from dropped labels alone."""
    never, always = trained(label_drop=0.0), trained(label_drop=0.99)
    for model, learns in ((never, False), (always, True)):
        model.loss("denoise", batch(40), rng_for(0, "train", range(40)), 0).total.backward()
        gradient = model.denoiser.unet.classes.weight.grad
        assert bool(gradient[GREY.classes].any()) is learns
        assert bool(gradient[: GREY.classes].any()) is not learns


# CollapseMonitor


@pytest.mark.slow
def test_samples_of_a_new_model_are_its_gaussian():
    model = build(mean=0.1)  # the prior's mean all but vanishes on the way
    x = model.sample(
        torch.arange(3000) % 3, rng_for(0, "s", range(3000)), DiffusionSample(steps=24)
    )
    assert x.shape == (3000, 1, 4, 4)
    assert x.std().item() == pytest.approx(SIGMA_DATA, rel=0.08)
    assert x.mean().item() == pytest.approx(0.1, abs=4 * SIGMA_DATA / math.sqrt(x.numel()))


@pytest.mark.parametrize(
    ("solver", "steps"),
    [("heun", 24), ("ddim", 60), ("dpm_solver", 24), ("unipc", 18), ("ancestral", 100)],
)
def test_every_sampler_draws_from_the_gaussian_of_a_new_model(solver, steps):
    options = DiffusionSample(solver=solver, steps=steps)
    x = build().sample(torch.arange(500) % 3, rng_for(0, "s", range(500)), options)
    assert x.std().item() == pytest.approx(SIGMA_DATA, rel=0.08)
    assert x.mean().item() == pytest.approx(0, abs=4 * SIGMA_DATA / math.sqrt(x.numel()))


def test_samples_are_in_range_and_finite():
    model = build(RGB, sigma_data=3.0, dtype=torch.float32)
    x = model.sample(None, rng_for(0, "s", range(20)), DiffusionSample(steps=3))
    assert x.dtype == torch.float32
    assert x.shape == (20, 3, 4, 6)
    assert x.abs().max() == 1  # most would be outside


def test_guidance_of_one_is_the_conditional_and_of_zero_the_unconditional():
    model, rng = trained(), rng_for(4, "s", range(3))

    def draw(labels, **options):
        return model.sample(torch.tensor(labels), rng, DiffusionSample(steps=4, **options))

    plain = draw([0, 1, 2])
    none, more = draw([0, 1, 2], guidance=0.0), draw([0, 1, 2], guidance=3.0)
    assert torch.equal(none, draw([2, 2, 0], guidance=0.0))  # the label is ignored
    assert not torch.allclose(plain, none)
    assert not torch.allclose(plain, more)
    below = draw([0, 1, 2], guidance=3.0, guidance_low=100.0)  # no level is as high
    assert torch.equal(plain, below)


def test_guidance_needs_labels_and_dropped_ones():
    options, rng = DiffusionSample(steps=2, guidance=2), rng_for(0, "s", range(1))
    with pytest.raises(ConfigError, match="the data has no labels"):
        build(RGB).sample(None, rng, options)
    with pytest.raises(ConfigError, match="the data has no labels"):
        Model.check_sampling(DiffusionConfig(), options, RGB)
    with pytest.raises(ConfigError, match="label_drop is 0"):
        build(label_drop=0.0).sample(torch.tensor([0]), rng, options)
    with pytest.raises(ConfigError, match="label_drop is 0"):
        Model.check_sampling(DiffusionConfig(label_drop=0.0), options, GREY)
    Model.check_sampling(DiffusionConfig(), options, GREY)


@pytest.mark.parametrize(
    ("net", "options", "reason"),
    [
        ({}, DiffusionSample(spacing="linear"), "sample.spacing=linear"),
        (
            {"objective": "consistency"},
            DiffusionSample(solver="consistency", last=90),
            "sample.last",
        ),
    ],
)
def test_noise_levels_that_the_net_does_not_know_are_refused_before(net, options, reason):
    with pytest.raises(ConfigError, match=reason):
        Model.check_sampling(DiffusionConfig(**net), options, GREY)


def test_what_draws_from_p():
    assert DiffusionSample().draws_from_p
    for other in ({"guidance": 1.5}, {"steps": 4}, {"solver": "ddim"}, {"churn": 5}):
        assert not DiffusionSample.model_validate(other).draws_from_p, other
    assert not DiffusionSample(solver="ancestral", steps=100).draws_from_p
    assert DiffusionSample(solver="ancestral", steps=1000).draws_from_p
    assert DiffusionSample(solver="unipc", spacing="log").sampler == "unipc-18 log"
    assert DiffusionSample(churn=5, guidance=2).sampler == "heun-18, churn 5, guided 2"
    limited = DiffusionSample(guidance=3, guidance_low=0.2, guidance_high=2)
    assert limited.sampler == "heun-18, guided 3 above 0.2 up to 2"
    with pytest.raises(ValidationError, match="expected less than guidance_high=1"):
        DiffusionSample(guidance=3, guidance_low=5, guidance_high=1)


@pytest.mark.parametrize(
    "options", [{"terms": 8, "nfe": 8}, {"estimator": "bound", "dequantise": "none"}]
)
def test_options_of_the_other_estimator_are_refused(options):
    with pytest.raises(ValidationError, match="applies only to estimator"):
        DiffusionScore(**options)


def test_binary_data_gives_binary_samples():
    spec = ImageSpec(channels=1, height=4, width=4, levels=2)
    x = build(spec).sample(None, rng_for(0, "s", range(50)), DiffusionSample(steps=4))
    assert set(units.to_pixels(x).unique().tolist()) == {0, 255}


# Likelihood


def test_density_of_a_new_model_is_its_gaussian():
    model, rows = build(mean=0.1), batch(6)
    options = DiffusionScore(dequantise="none", steps=48, order=4)
    log_prob = model.log_prob(rows, rng_for(0, "score", range(6)), options)
    std = math.hypot(SIGMA_DATA, model.config.sigma_min)
    truth = Normal(0.1, std).log_prob(rows.x_BCHW(torch.float64)).flatten(1).sum(1)
    assert torch.allclose(log_prob.nats_B, truth, atol=1e-3)
    assert log_prob.stderr_B.max() < 1e-9  # c_skip I has the same trace under every probe
    assert (log_prob.label, log_prob.measure) == ("estimate", "lebesgue[-1,1]")


@pytest.mark.parametrize("levels", [256, 2])
def test_bounds_the_probability_of_the_pixels(levels):
    """The pixels' probability under the Gaussian, the edges' bins open as the sampler's rounding has them."""
    spec = ImageSpec(channels=1, height=4, width=4, levels=levels)
    pixels = batch(8, spec).pixels_BCHW
    if levels == 2:
        pixels = (pixels // 128) * 255
    model = build(spec)
    rows = Batch(pixels, None, torch.arange(8))
    options = DiffusionScore(steps=32, order=4, draws=8)
    log_prob = model.log_prob(rows, rng_for(0, "score", range(8)), options)
    normal = Normal(0, torch.tensor(math.hypot(SIGMA_DATA, model.config.sigma_min)).double())
    index = (pixels.double() * (levels - 1) / 255).round()
    low, high = index * 2 / levels - 1, (index + 1) * 2 / levels - 1
    low[index == 0], high[index == levels - 1] = -math.inf, math.inf
    truth = (normal.cdf(high) - normal.cdf(low)).log().flatten(1).sum(1)
    gap = truth - log_prob.nats_B
    assert (gap > -4 * log_prob.stderr_B - 1e-3).all()
    assert (log_prob.label, log_prob.measure) == ("stochastic_lower_bound", "counts")
    assert (log_prob.stderr_B > 0).all()
    if levels == 256:  # bins are narrow against the density, so the bound is tight
        assert (gap < 4 * log_prob.stderr_B + 1e-2).all()


@pytest.mark.parametrize("spec", [GREY, RGB], ids=["grey", "rgb"])
def test_scores_do_not_depend_on_the_split(spec):
    model, rows, rng = trained(spec), batch(5, spec), rng_for(3, "score", range(5))
    options = DiffusionScore(steps=3)
    whole = model.log_prob(rows, rng, options)
    for i in range(5):
        one = slice(i, i + 1)
        single = model.log_prob(rows.rows(one), rng.rows(one), options)
        assert torch.allclose(whole.nats_B[one], single.nats_B, rtol=0, atol=1e-10)
        assert torch.allclose(whole.stderr_B[one], single.stderr_B, rtol=0, atol=1e-10)


def test_exact_trace_agrees_with_the_probes():
    model, rows, rng = trained(), batch(1), rng_for(3, "score", range(1))
    options = {"steps": 3, "dequantise": "none"}
    exact = model.log_prob(rows, rng, DiffusionScore(trace="exact", **options))
    probed = model.log_prob(rows, rng, DiffusionScore(draws=40, trace="hutchinson", **options))
    assert exact.stderr_B.item() == pytest.approx(0, abs=1e-12)
    assert probed.stderr_B.item() > 0
    assert abs(exact.nats_B - probed.nats_B).item() < 4 * probed.stderr_B.item()


def test_small_images_have_the_exact_trace():
    rng = rng_for(3, "score", range(1))
    for height, trace in ((2, "exact"), (4, "hutchinson")):
        spec = ImageSpec(channels=1, height=height, width=4)
        found = trained(spec).log_prob(batch(1, spec), rng, DiffusionScore(steps=3))
        assert found.budget["trace"] == trace


def test_the_label_counts_and_can_be_dropped():
    model, rng = trained(), rng_for(3, "score", range(3))
    pixels = batch(3).pixels_BCHW

    def score(labels, **options):
        rows = Batch(pixels, torch.tensor(labels), torch.arange(3))
        return model.log_prob(rows, rng, DiffusionScore(steps=3, **options))

    assert not torch.allclose(score([0, 1, 2]).nats_B, score([1, 2, 0]).nats_B)
    first, second = score([0, 1, 2], unconditional=True), score([1, 2, 0], unconditional=True)
    assert torch.equal(first.nats_B, second.nats_B)
    assert "given the label" in score([0, 1, 2]).of
    assert "without its label" in first.of


def test_samples_are_likelier_under_their_own_model():
    """Images of a model have more log p under it than images of twice the spread."""
    model = build()
    rng = rng_for(0, "score", range(40))
    options = DiffusionScore(steps=12)
    own = model.log_prob(batch(40), rng, options).nats_B.mean()
    other = model.log_prob(batch(40, std=2 * SIGMA_DATA), rng, options).nats_B.mean()
    assert own - other > 5


# Configuration


def test_images_that_do_not_divide():
    config = DiffusionConfig(unshuffle=2, widths=(8, 8, 8), attention=())
    with pytest.raises(ConfigError, match="multiples of 8, got 28x28"):
        Model.check(config, ImageSpec(channels=1, height=28, width=28))
    Model.check(config, ImageSpec(channels=1, height=32, width=64))


@pytest.mark.parametrize(
    "wrong",
    [
        {"widths": (8,), "attention": (1,)},
        {"widths": (8, 12), "attention": (1,), "head": 8},
        {"sigma_min": 90.0},
        {"widths": (0,), "attention": ()},
    ],
)
def test_impossible_nets_are_refused(wrong):
    with pytest.raises(ValidationError):
        DiffusionConfig.model_validate(wrong)


def test_images_without_variance_need_a_sigma():
    stats = DataStats(mean=(0.0,), std=(0.0,))
    with pytest.raises(ConfigError, match="sigma_data"):
        Model(DiffusionConfig.tiny(), GREY, stats)
    Model(DiffusionConfig.tiny().model_copy(update={"sigma_data": 0.5}), GREY, stats)


def test_one_draw_has_no_standard_error():
    with pytest.raises(ValidationError):
        DiffusionScore(draws=1)


def test_unscorable_without_the_label():
    never = DiffusionConfig(label_drop=0.0)
    with pytest.raises(Unscorable, match="label_drop"):
        Model.check_scorable(never, DiffusionScore(unconditional=True))
    Model.check_scorable(never, DiffusionScore())


def test_noise_outside_of_a_schedule_is_refused():
    with pytest.raises(ConfigError, match=r"inside the schedule's range"):
        DiffusionConfig(noise=TrainingNoise(schedule="linear"))
    DiffusionConfig(noise=TrainingNoise(schedule="linear"), sigma_min=0.0101)


def test_a_tuned_net_is_sampled_by_its_sampler_and_has_no_density():
    tuned = DiffusionConfig(objective="consistency")
    few = DiffusionSample(solver="consistency", steps=2)
    Model.check_sampling(tuned, few, GREY)
    Model.check_sampling(DiffusionConfig(), DiffusionSample(), GREY)
    for config, options in ((tuned, DiffusionSample()), (DiffusionConfig(), few)):
        with pytest.raises(ConfigError, match="set both or neither to consistency"):
            Model.check_sampling(config, options, GREY)
    with pytest.raises(Unscorable, match="no density"):
        Model.check_scorable(tuned, DiffusionScore())
    assert not few.draws_from_p


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_loss_of_a_new_ddpm_net(prediction):
    """A new net answers 0, so the loss is the mean square of what it should have answered."""
    noise = TrainingNoise(schedule="cosine")
    model = build(prediction=prediction, noise=noise, sigma_min=0.02)
    loss = model.loss("denoise", batch(2000), rng_for(0, "train", range(2000)), 0).total.item()
    sigmas = noise.quantile((torch.arange(1000).double() + 0.5) / 1000, 0.02, 80.0)
    share = 1 / (1 + sigmas**2)  # alpha squared
    mean_square = {
        "eps": 1.0,
        "x0": SIGMA_DATA**2,
        "v": float((share + (1 - share) * SIGMA_DATA**2).mean()),
    }
    assert loss == pytest.approx(mean_square[prediction], rel=0.05)


def test_options_have_a_fingerprint():
    for options in (DiffusionConfig(), DiffusionSample(), DiffusionScore()):
        assert canonical_json(options.model_dump(mode="json"))


# Trained for likelihood


def test_the_bound_is_the_loss_of_likelihood():
    """Of a new model, whose D is mean + c_skip (x - mean), on the same rows many times over."""
    model, rows = build(mean=0.1, objective="likelihood", sigma_max=12.0), batch(4)
    options = DiffusionScore(estimator="bound", draws=20, nfe=32)
    log_prob = model.log_prob(rows, rng_for(0, "score", range(4)), options)
    assert (log_prob.label, log_prob.measure) == ("lower_bound", "counts")
    many = Batch(
        rows.pixels_BCHW.repeat(400, 1, 1, 1), rows.labels_B.repeat(400), torch.arange(1600)
    )
    losses = model.loss("denoise", many, rng_for(1, "train", range(1600)), 0)
    expected = -log_prob.nats_B.mean() / GREY.dims
    stderr = log_prob.stderr_B.square().sum().sqrt().item() / 4 / GREY.dims
    assert losses.total.item() == pytest.approx(expected.item(), abs=5 * stderr + 0.02)
    bits = losses.terms["bound_bits_per_dim"].item()
    assert bits == pytest.approx(losses.total.item() / math.log(2))


def test_the_bound_is_below_the_flow():
    """Of a new model the flow's log P is known in closed form; the noisy process has another, lower one."""
    model, rows = build(), batch(30)
    rng = rng_for(0, "score", range(30))
    flow = model.log_prob(rows, rng, DiffusionScore()).nats_B.mean()
    bounds = [
        model.log_prob(rows, rng, DiffusionScore(estimator="bound", terms=t)).nats_B.mean()
        for t in (64, 1000, None)
    ]
    assert bounds[0] < bounds[1] < flow
    assert bounds[2] < flow


@pytest.mark.slow
def test_calls_and_solver_error_are_told_for_each_row():
    model, rows = trained(), batch(6)
    rng = rng_for(0, "score", range(6))
    tight = model.log_prob(rows, rng, DiffusionScore(tolerance=1e-5))
    told_B = tight.columns["solver_error_nats"]
    for options in (DiffusionScore(tolerance=1e-4), DiffusionScore(steps=48)):
        found = model.log_prob(rows, rng, options)
        error_B = (found.nats_B - tight.nats_B).abs()
        assert error_B.mean() < found.columns["solver_error_nats"].mean()
        assert told_B.mean() < found.columns["solver_error_nats"].mean() / 2
    assert (tight.columns["nfe"] > found.columns["nfe"]).all()


def test_exact_to_tolerance_is_said_of_what_has_no_chance_in_it():
    model, rows = trained(), batch(1)
    rng = rng_for(0, "score", range(1))
    options = {"dequantise": "none", "trace": "exact", "tolerance": 1e-3}
    sure = model.log_prob(rows, rng, DiffusionScore(**options))
    assert sure.label == "exact_to_tolerance"
    assert sure.stderr_B.max() == 0
    assert model.log_prob(rows, rng, DiffusionScore(**options, steps=6)).label == "estimate"
    probed = DiffusionScore(dequantise="none", trace="hutchinson", tolerance=1e-3)
    assert model.log_prob(rows, rng, probed).label == "estimate"


def test_waves_tell_neighbouring_pixel_values_apart_and_fade_in_noise():
    model = trained(fourier=(6,), label_drop=0.0)
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    low, high = (torch.tensor([s], dtype=torch.float64) for s in (0.001, 0.1))
    waves = list(model.denoiser.fourier_features(x + 2 / 256, low[:, None, None, None]))
    assert waves[0].mean().item() == pytest.approx(math.sin(math.pi / 2), rel=0.03)
    assert waves[1].abs().max() < 1e-9
    assert (
        max(w.abs().max() for w in model.denoiser.fourier_features(x, high[:, None, None, None]))
        < 1e-50
    )
    assert model.denoiser(x, low, torch.tensor([0])).shape == x.shape


def test_more_calls_than_terms_are_refused():
    with pytest.raises(ValidationError, match="terms"):
        DiffusionScore(estimator="bound", terms=8)
