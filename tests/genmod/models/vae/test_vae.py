"""The VAE: its objective, its draws and its bounds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from genmod.config import parse
from genmod.errors import ConfigError, Unscorable
from genmod.interface.batch import Batch
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.likelihood.ais import AISOptions
from genmod.manifest import ImageSpec
from genmod.models.vae import Model, VAEConfig, VAESample, VAEScore
from genmod.models.vae.hierarchical import HierarchicalPosterior
from genmod.rng import rng_for

GREY = ImageSpec(channels=1, height=9, width=6, classes=3)
RGB = ImageSpec(channels=3, height=8, width=8)
BINARY = ImageSpec(channels=1, height=6, width=6, classes=2, levels=2)
CASES = [
    pytest.param(GREY, {}, id="logistic-grey"),
    pytest.param(RGB, {}, id="logistic-rgb"),
    pytest.param(BINARY, {}, id="bernoulli"),
    pytest.param(GREY, {"likelihood": "categorical_256"}, id="categorical-grey"),
    pytest.param(RGB, {"likelihood": "gaussian_sigma"}, id="gaussian-rgb"),
    pytest.param(BINARY, {"groups": 2, "ladder_width": 8}, id="groups"),
    pytest.param(
        BINARY,
        {"prior_components": 3, "hidden": (7, 5), "activation": "relu"},
        id="mixture-plain-layers",
    ),
    pytest.param(BINARY, {"hidden": (6,), "activation": "tanh"}, id="tanh"),
]
every_case = pytest.mark.parametrize(("spec", "net"), CASES)


def build(spec: ImageSpec, **net: Any) -> Model:
    config = VAEConfig.tiny().model_dump() | net
    stats = DataStats(mean=(0.0,) * spec.channels, std=(1.0,) * spec.channels)
    model = ModelConfig(family="vae", net=config, spec=spec, stats=stats).build(seed=3)
    assert isinstance(model, Model)
    return model


def batch_of(spec: ImageSpec, rows: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels_BCHW = torch.randint(0, 256, (rows, *spec.shape), generator=generator)
    if spec.levels == 2:
        pixels_BCHW = (pixels_BCHW > 127) * 255
    labels_B = torch.arange(rows) % spec.classes if spec.classes else None
    return Batch(pixels_BCHW.to(torch.uint8), labels_B, torch.arange(rows) + 70)


def rng_of(batch: Batch, purpose: str = "vae"):
    return rng_for(5, purpose, batch.index_B)


@every_case
def test_terms_fit_together_and_every_parameter_gets_a_gradient(spec, net):
    model, batch = build(spec, **net, beta=2.0, kl_warmup_nimg=100), batch_of(spec, 6)
    losses = model.loss("elbo", batch, rng_of(batch), nimg=50)
    terms = losses.terms
    assert float(terms["beta"]) == 1.0
    torch.testing.assert_close(losses.total.detach(), terms["kl_nats"] - terms["rec_nats"])
    torch.testing.assert_close(terms["elbo_nats"], terms["rec_nats"] - terms["kl_nats"])
    assert not any(term.requires_grad for term in terms.values())
    losses.total.backward()
    (phase,) = model.phases()
    mine = model.parameters_of(phase)
    assert set(mine) == {name for name, _ in model.named_parameters()}
    assert all(parameter.grad is not None for parameter in mine.values())


@every_case
@pytest.mark.parametrize("output", ["draw", "mean"])
def test_samples_are_images_of_the_spec_whatever_the_batch(spec, net, output):
    model = build(spec, **net).double()
    labels_B = torch.arange(7) % spec.classes if spec.classes else None
    rng, options = rng_for(1, "sample", range(20, 27)), VAESample(output=output)
    whole = model.sample(labels_B, rng, options)
    assert whole.shape == (7, *spec.shape)
    assert float(whole.abs().max()) <= 1
    if spec.levels == 2:
        assert float(whole.abs().min()) == float(whole.abs().max())
    for row in range(7):
        one = slice(row, row + 1)
        label = None if labels_B is None else labels_B[one]
        torch.testing.assert_close(
            model.sample(label, rng.rows(one), options), whole[one], rtol=0, atol=1e-10
        )


@every_case
def test_loss_and_scores_do_not_depend_on_how_the_batch_is_split(spec, net):
    free = {} if "prior_components" in net else {"free_bits_nats": 0.05, "free_bits_group": 2}
    model, batch = build(spec, **net, **free).double(), batch_of(spec, 8)
    halves = [batch.rows(slice(0, 4)), batch.rows(slice(4, 8))]
    whole = model.loss("elbo", batch, rng_of(batch), 8).total
    parts = [model.loss("elbo", half, rng_of(half), 8).total for half in halves]
    torch.testing.assert_close(sum(parts) / 2, whole, rtol=0, atol=1e-10)
    hows = [VAEScore(k=6, repeats=2, chunk=5)]
    hows.append(VAEScore(k=8, target_stderr_nats=0.1, most_k=64, chunk=5))
    if net.get("likelihood") != "gaussian_sigma":
        hows.append(VAEScore.model_validate({"estimator": "ais", "ais": AISOptions.tiny()}))
    for options in hows:
        scores = [model.log_prob(rows, rng_of(rows), options) for rows in (batch, *halves)]
        torch.testing.assert_close(
            torch.cat([score.nats_B for score in scores[1:]]), scores[0].nats_B, rtol=0, atol=1e-9
        )


@pytest.mark.parametrize(
    ("levels", "net"),
    [
        (2, {}),
        (2, {"groups": 2, "ladder_width": 8}),
        (2, {"prior_components": 3}),
        (256, {"components": 1}),
        (256, {"components": 3}),
        (256, {"likelihood": "categorical_256"}),
        (256, {"likelihood": "gaussian_sigma"}),
    ],
    ids=str,
)
def test_probabilities_of_all_images_sum_to_one(levels, net):
    """The mean weight is unbiased for p(x), so its sum over every image is 1 up to its error."""
    size = 2 if levels == 2 else 1
    spec = ImageSpec(channels=1, height=size, width=size, classes=2, levels=levels)
    model = build(spec, unshuffle=1, **net).double()
    with torch.no_grad():
        if "gaussian_sigma" in net.values():  # so narrow that its mass lies inside of [-1, 1]
            model.noise.log_sigma.fill_(math.log(0.1))
        else:
            model.decoder.head.weight.mul_(20)
        if (
            "prior_components" in net
        ):  # so near that an untrained posterior's draws come to all of it
            model.prior.mean_KZ.mul_(0.3)
    count = levels ** (size * size)
    value_N = torch.arange(count)
    if levels == 2:
        pixels = torch.stack([(value_N >> bit & 1) * 255 for bit in range(size * size)], 1)
    else:
        pixels = value_N
    batch = Batch(pixels.to(torch.uint8).view(count, 1, size, size), value_N * 0 + 1, value_N)
    score = model.log_prob(batch, rng_of(batch), VAEScore(k=400, chunk=100_000))
    p_N = score.nats_B.exp()
    assert abs(float(p_N.sum()) - 1) < 4 * float((p_N * score.stderr_B).square().sum().sqrt())
    assert score.label == "stochastic_lower_bound"
    assert score.measure == "counts"


def test_annealed_chains_find_what_importance_samples_find():
    """Two ways that share only the model: L_5000 and chains from the encoder, each within its error."""
    model, batch = build(BINARY, latents=2).double(), batch_of(BINARY, 12)
    with torch.no_grad():
        model.decoder.head.weight.mul_(10)
    weighted = model.log_prob(batch, rng_of(batch), VAEScore(k=2000, chunk=24_000))
    chains = AISOptions(temperatures=40, radius=3, chains=12, pilot_temperatures=20)
    annealed = model.log_prob(batch, rng_of(batch), VAEScore(estimator="ais", ais=chains))
    assert annealed.label == weighted.label == "stochastic_lower_bound"
    assert (annealed.of, annealed.measure) == (weighted.of, weighted.measure)
    assert annealed.estimator != weighted.estimator
    stderr = float((annealed.stderr_B.square() + weighted.stderr_B.square()).sum().sqrt()) / 12
    assert abs(float((annealed.nats_B - weighted.nats_B).mean())) < 3 * stderr + 0.02
    assert stderr < 0.05


def test_a_dequantised_decoder_has_nothing_to_anneal_to():
    net = VAEConfig.tiny().model_copy(update={"likelihood": "gaussian_sigma"})
    with pytest.raises(Unscorable, match=r"set score\.estimator to iwae"):
        Model.check_scorable(net, VAEScore(estimator="ais"))


def test_the_trained_sigma_is_the_root_of_the_mean_squared_error():
    model, batch = build(RGB, likelihood="gaussian_sigma").double(), batch_of(RGB, 6)
    slope = torch.ones(())
    for _ in range(
        60
    ):  # the loss is D log sigma + S / (2 sigma^2): its slope vanishes at S = D sigma^2
        total = model.loss("elbo", batch, rng_of(batch), 10**9).total
        (slope,) = torch.autograd.grad(total, model.noise.log_sigma)
        with torch.no_grad():
            model.noise.log_sigma -= slope / (2 * RGB.dims)
    assert abs(float(slope)) < 1e-6
    rec_nats = model.loss("elbo", batch, rng_of(batch), 10**9).terms["rec_nats"]
    sigma = float(model.noise.log_sigma.detach().exp())
    entropy = 0.5 * math.log(2 * math.pi * math.e * sigma**2) - math.log(2 / 256)
    assert float(rec_nats) == pytest.approx(-RGB.dims * entropy, rel=1e-6)


def test_k_1_is_the_elbo_of_training_at_beta_1_and_labelled_a_lower_bound():
    model, batch = build(GREY, beta=4.0, kl_warmup_nimg=1000).double(), batch_of(GREY, 2)
    score = model.log_prob(batch, rng_of(batch), VAEScore(k=1, repeats=2000))
    assert score.label == "lower_bound"
    assert score.budget == {"k": 1, "repeats": 2000}
    elbos = [
        model.loss("elbo", batch, rng_of(batch).at(step), nimg=10).terms["elbo_nats"]
        for step in range(300)
    ]
    elbo = torch.stack(elbos)
    spread = float((score.stderr_B.square().sum() / 4 + elbo.var() / len(elbo)).sqrt())
    assert abs(float(elbo.mean() - score.nats_B.mean())) < 4 * spread


def test_under_autocast_likelihood_and_divergence_stay_in_float32():
    model, batch = build(GREY), batch_of(GREY, 4)
    whole = model.loss("elbo", batch, rng_of(batch), nimg=100).total
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.loss("elbo", batch, rng_of(batch), nimg=100).total
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, whole, rtol=0.02, atol=0)


def test_free_bits_hold_each_group_s_kl_up_for_each_image():
    model, batch = build(GREY).double(), batch_of(GREY, 6)
    plain = model.loss("elbo", batch, rng_of(batch), nimg=10**9)
    kl, rec = plain.terms["kl_nats"], plain.terms["rec_nats"]
    for group, floors in ((1, 4), (2, 2), (4, 1)):
        held = build(GREY, free_bits_nats=50.0, free_bits_group=group).double()
        held.load_state_dict(model.state_dict())
        losses = held.loss("elbo", batch, rng_of(batch), nimg=10**9)
        assert float(kl) < 50
        torch.testing.assert_close(losses.total.detach(), 50.0 * floors - rec)
        torch.testing.assert_close(losses.terms["kl_nats"], kl)


def test_the_kl_weight_grows_with_images_seen():
    model = build(GREY, beta=3.0, kl_warmup_nimg=200)
    assert [model.beta(nimg) for nimg in (0, 100, 200, 10_000)] == [0.0, 1.5, 3.0, 3.0]
    assert build(GREY, kl_warmup_nimg=0).beta(0) == 1.0


def test_training_uses_the_latents_and_raises_the_bound():
    """Four equally likely patterns without labels: telling them apart takes log 4 nats of KL."""
    spec = ImageSpec(channels=1, height=6, width=6, levels=2)
    pixels_BCHW = torch.zeros(4, 1, 6, 6, dtype=torch.uint8)
    for row in range(4):
        pixels_BCHW[row, 0, 3 * (row // 2) :][:3, 3 * (row % 2) :][:, :3] = 255
    model = build(spec, kl_warmup_nimg=1000)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    terms = {}
    for step in range(100):
        index_B = torch.arange(16) + 16 * step
        batch = Batch(pixels_BCHW[index_B % 4], None, index_B)
        losses = model.loss("elbo", batch, rng_of(batch), 16 * step)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        terms = losses.terms
    # A model that ignores its latents reaches the entropy of the pixels alone, -36 H(1/4) = -20.2.
    assert -8 < float(terms["elbo_nats"]) < -math.log(4)
    assert math.log(4) - 0.1 < float(terms["kl_nats"]) < 8
    assert float(terms["active_units"]) >= 1


@pytest.mark.parametrize(
    ("net", "spec"),
    [
        ({"likelihood": "bernoulli"}, GREY),
        ({"likelihood": "discretised_logistic"}, BINARY),
        ({"likelihood": "categorical_256"}, BINARY),
        ({"likelihood": "gaussian_sigma"}, BINARY),
        ({"widths": (4, 4, 4, 4)}, GREY),
    ],
)
def test_what_cannot_be_modelled_is_refused_in_one_line(net, spec):
    with pytest.raises(ConfigError) as caught:
        build(spec, **net)
    assert "net." in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        (VAEScore, {"k": 1}),
        (VAEConfig, {"latents": 4, "free_bits_group": 3}),
        (VAEConfig, {"widths": [8, 0]}),
        (VAEConfig, {"latents": 4, "groups": 3}),
        (VAEConfig, {"latents": 26, "groups": 13}),
        (VAESample, {"temperature": 0}),
    ],
)
def test_senseless_configurations_are_refused(schema, values):
    with pytest.raises(ConfigError):
        parse(schema, values, "model.vae")


def test_only_unchanged_draws_are_called_draws_from_p():
    assert VAESample().draws_from_p
    assert not VAESample(output="mean").draws_from_p
    assert not VAESample(temperature=0.7).draws_from_p
    names = {VAESample(output=o, temperature=t).sampler for o in ("draw", "mean") for t in (1, 0.7)}
    assert len(names) == 4


def test_labels_matter_to_samples_and_scores():
    model, batch = build(GREY).double(), batch_of(GREY, 3)
    assert batch.labels_B is not None
    other = Batch(batch.pixels_BCHW, (batch.labels_B + 1) % 3, batch.index_B)
    options = VAEScore(k=4)
    one, two = (model.log_prob(rows, rng_of(batch), options).nats_B for rows in (batch, other))
    assert ((one - two).abs() > 1e-6).all()
    rng, mean = rng_of(batch), VAESample(output="mean")
    assert not torch.allclose(
        model.sample(batch.labels_B, rng, mean), model.sample(other.labels_B, rng, mean)
    )


def test_a_group_depends_on_those_above_it_and_its_density_is_that_of_its_draws():
    model, batch = build(BINARY, groups=2, ladder_width=8).double(), batch_of(BINARY, 5)
    h_BF = model.encoder(batch.x_BCHW(torch.float64), model.classes(batch.labels_B))
    plain_BZ = HierarchicalPosterior(model.top_down_net, h_BF).draw(rng_of(batch))
    q = HierarchicalPosterior(model.top_down_net, h_BF).conditional(plain_BZ)
    raw_B8 = model.top_down_net.features(h_BF)
    torch.testing.assert_close(q.mean_BZ[:, :2], raw_B8[:, :2])
    torch.testing.assert_close(q.mean_BZ[:, 2:], raw_B8[:, 4:6])  # it begins as a plain VAE
    top_down_net, zeros_BZ = model.top_down_net, torch.zeros_like(plain_BZ)
    torch.testing.assert_close(
        top_down_net(2 * plain_BZ) - top_down_net(zeros_BZ),
        2 * (top_down_net(plain_BZ) - top_down_net(zeros_BZ)),
    )
    with torch.no_grad():
        for number, weight in enumerate(top_down_net.parameters()):
            noise = rng_for(0, "test/ladder", [number]).normal(*weight.shape, dtype=weight.dtype)
            weight.add_(0.3 * noise.view_as(weight))
    latents = model.latents(batch, rng_of(batch))
    assert latents.groups == (2, 2)
    posterior = HierarchicalPosterior(model.top_down_net, h_BF)
    eps_BZ = rng_of(batch).fold("posterior").normal(4, dtype=torch.float64)
    q = posterior.conditional(latents.z_BZ)
    torch.testing.assert_close(q.mean_BZ + q.log_std_BZ.exp() * eps_BZ, latents.z_BZ)
    torch.testing.assert_close(posterior.nats(latents.z_BZ), q.nats(latents.z_BZ))
    moved_BZ = latents.z_BZ.clone()
    moved_BZ[:, 0] += 1
    other = posterior.conditional(moved_BZ)
    torch.testing.assert_close(other.mean_BZ[:, :2], q.mean_BZ[:, :2])
    assert ((other.mean_BZ - q.mean_BZ)[:, 2:].abs() > 1e-6).all()
