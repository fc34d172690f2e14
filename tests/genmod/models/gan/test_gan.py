"""The GAN: losses by hand, penalties in closed form, what phases move, what sampling promises."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from genmod import units
from genmod.errors import ConfigError, Unscorable
from genmod.interface.batch import Batch
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.models.gan import GanSample, GanScore, Model
from genmod.models.gan.config import GanConfig, Penalty
from genmod.rng import rng_for
from genmod.training.checkpoint import Checkpoints
from genmod.training.loop import Plan, train
from genmod.training.metric_log import read_metrics
from genmod.training.monitors.validation import Validation
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.training.state import TrainState
from genmod.world import SingleProcess

GREY = ImageSpec(channels=1, height=8, width=8, classes=3)
PLAIN = ImageSpec(channels=1, height=8, width=12)
RGB = ImageSpec(channels=3, height=12, width=8, classes=2)
BINARY = ImageSpec(channels=1, height=8, width=8, levels=2)
SPECS = [GREY, PLAIN, RGB, BINARY]
ROWS = 6


def make(spec: ImageSpec, seed: int = 0, **net: object) -> Model:
    net = GanConfig.tiny().model_copy(update=net).model_dump(mode="json")
    stats = DataStats(mean=(0.0,) * spec.channels, std=(0.5,) * spec.channels)
    model = ModelConfig(family="gan", net=net, spec=spec, stats=stats).build(seed)
    assert isinstance(model, Model)
    return model.double()


def rows(spec: ImageSpec, count: int = ROWS) -> Batch:
    made = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (count, *spec.shape), generator=made, dtype=torch.uint8)
    if spec.levels == 2:
        pixels = (pixels > 127).to(torch.uint8) * 255
    labels = torch.arange(count) % spec.classes if spec.classes else None
    return Batch(pixels, labels, torch.arange(count) + 40)


def rng_of(batch: Batch):
    return rng_for(5, "train", batch.index_B)


def only(model: Model, phase: str) -> None:
    """Leave gradients to one phase's parameters, as the loop does."""
    for other in model.phases():
        for weight in model.parameters_of(other).values():
            weight.requires_grad_(other.name == phase)


class Linear(nn.Module):
    """D(x) = w . x, whose gradient is w everywhere."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 2, dims, dtype=torch.float64))

    def forward(self, x, labels):
        return x.flatten(1) @ self.w


class Quadratic(nn.Module):
    """D(x) = a |x|^2 / 2, whose gradient is a x."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.7, dtype=torch.float64))

    def forward(self, x, labels):
        return 0.5 * self.a * x.flatten(1).square().sum(1)


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def fakes(model: Model, phase: str, batch: Batch) -> torch.Tensor:
    z = rng_of(batch).fold(phase).fold("z").normal(model.config.z_dim, dtype=torch.float64)
    with torch.no_grad():
        return model.generator(z, batch.labels_B)


def test_linear_discriminator_in_closed_form():
    model, batch = make(GREY), rows(GREY)
    model.discriminator = Linear(GREY.dims)
    w = model.discriminator.w.detach()
    losses = model.loss("discriminator", batch, rng_of(batch), nimg=0)
    gamma = model.config.gamma.base
    real = batch.x_BCHW(torch.float64).flatten(1)
    fake = fakes(model, "discriminator", batch).flatten(1)
    gaps = [float(w @ (r - f)) for r, f in zip(real, fake, strict=True)]
    pairing = sum(softplus(-gap) for gap in gaps) / ROWS
    assert losses.terms["r1_sq_norm"].item() == pytest.approx(float(w @ w), rel=1e-12)
    assert losses.terms["r2_sq_norm"].item() == pytest.approx(float(w @ w), rel=1e-12)
    assert losses.terms["logit_gap"].item() == pytest.approx(sum(gaps) / ROWS, rel=1e-12)
    assert losses.terms["adversarial_loss"].item() == pytest.approx(pairing, rel=1e-12)
    assert losses.total.item() == pytest.approx(pairing + gamma * float(w @ w), rel=1e-12)
    # d/dw: the pairing pulls along -(x - G) sigmoid(-gap), both penalties together give 2 gamma w.
    losses.total.backward()
    pull = sum(-(r - f) / (1 + math.exp(gap)) for r, f, gap in zip(real, fake, gaps, strict=True))
    torch.testing.assert_close(
        model.discriminator.w.grad, pull / ROWS + 2 * gamma * w, rtol=1e-10, atol=1e-12
    )


def test_penalties_are_sums_over_pixels_and_means_over_rows():
    model, batch = make(RGB), rows(RGB)
    model.discriminator = Quadratic()
    losses = model.loss("discriminator", batch, rng_of(batch), nimg=0)
    real, fake = batch.x_BCHW(torch.float64), fakes(model, "discriminator", batch)
    a = model.discriminator.a.item()
    for name, x in (("r1_sq_norm", real), ("r2_sq_norm", fake)):
        assert losses.terms[name].item() == pytest.approx(
            a**2 * x.square().sum().item() / ROWS, rel=1e-12
        )


def test_generator_loss_by_hand():
    model, batch = make(GREY), rows(GREY)
    model.discriminator = Linear(GREY.dims)
    w = model.discriminator.w.detach()
    losses = model.loss("generator", batch, rng_of(batch), nimg=0)
    fake = fakes(model, "generator", batch).flatten(1)
    gaps = (fake - batch.x_BCHW(torch.float64).flatten(1)) @ w
    by_hand = sum(softplus(-float(gap)) for gap in gaps) / ROWS
    assert losses.total.item() == pytest.approx(by_hand, rel=1e-12)
    assert losses.terms["logit_gap"].item() == pytest.approx(gaps.mean().item(), rel=1e-12)


def test_loss_is_the_mean_of_its_rows():
    model, batch = make(GREY), rows(GREY)
    for phase in model.phases():
        whole = model.loss(phase.name, batch, rng_of(batch), 0).total
        parts = [batch.rows(slice(row, row + 1)) for row in range(ROWS)]
        alone = [model.loss(phase.name, part, rng_of(part), 0).total for part in parts]
        torch.testing.assert_close(whole, torch.stack(alone).mean(), rtol=1e-10, atol=1e-10)


def test_gamma_falls_along_half_a_cosine():
    gamma = Penalty(base=2.0, final=0.5, nimg=1000)
    assert gamma.at(0) == 2.0
    assert gamma.at(500) == pytest.approx(1.25)
    assert gamma.at(250) == pytest.approx(0.5 + 1.5 * (1 + math.sqrt(0.5)) / 2)
    assert gamma.at(1000) == gamma.at(10**9) == 0.5
    model, batch = make(GREY, gamma=gamma), rows(GREY)
    assert model.loss("discriminator", batch, rng_of(batch), 500).terms["gamma"].item() == 1.25


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_phase_gives_gradients_to_its_own_parameters_alone(spec):
    model, batch = make(spec), rows(spec)
    for phase in model.phases():
        only(model, phase.name)
        losses = model.loss(phase.name, batch, rng_of(batch), 0)
        losses.total.backward()
        own = model.parameters_of(phase)
        for name, weight in model.named_parameters():
            assert (weight.grad is not None) == (name in own), name
            if name in own:
                assert weight.grad.abs().max() > 0, name
                assert weight.grad.isfinite().all(), name
        assert losses.total.shape == ()
        assert all(not term.requires_grad for term in losses.terms.values())
        model.zero_grad()


def test_phases_cover_all_parameters_once():
    model = make(GREY)
    names = [name for phase in model.phases() for name in model.parameters_of(phase)]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_both_phases_draw_different_latents():
    model, batch = make(GREY), rows(GREY)
    assert not torch.equal(fakes(model, "discriminator", batch), fakes(model, "generator", batch))
    first = model.loss("generator", batch, rng_of(batch), 0).total
    assert torch.equal(first, model.loss("generator", batch, rng_of(batch), 0).total)


def test_descending_each_loss_does_what_it_says():
    model, batch = make(GREY, gamma=Penalty(base=0.01, final=0.01, nimg=1)), rows(GREY)
    for name, gap_rises in (("discriminator", "discriminator"), ("generator", "generator")):
        only(model, name)
        phase = next(p for p in model.phases() if p.name == name)
        optimiser = torch.optim.Adam(list(model.parameters_of(phase).values()), lr=1e-3)
        before = model.loss(name, batch, rng_of(batch), 0)
        for _ in range(5):
            optimiser.zero_grad()
            model.loss(name, batch, rng_of(batch), 0).total.backward()
            optimiser.step()
        after = model.loss(gap_rises, batch, rng_of(batch), 0)
        assert after.total < before.total
        assert after.terms["logit_gap"] > before.terms["logit_gap"]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_samples_do_not_depend_on_the_split(spec):
    model = make(spec)
    rng = rng_for(9, "sample", range(7))
    labels = torch.arange(7) % spec.classes if spec.classes else None
    whole = model.sample(labels, rng, GanSample())
    assert whole.shape == (7, *spec.shape)
    assert whole.abs().max() <= 1
    for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
        alone = model.sample(None if labels is None else labels[part], rng.rows(part), GanSample())
        torch.testing.assert_close(alone, whole[part], rtol=1e-10, atol=1e-10)
    assert len({row.sum().item() for row in whole}) == 7


def test_samples_of_binary_data_are_binary():
    x = make(BINARY).sample(None, rng_for(9, "sample", range(4)), GanSample())
    assert set(units.to_pixels(x).unique().tolist()) == {0, 255}


def test_truncation_is_flagged_and_narrows():
    model, rng = make(GREY), rng_for(9, "sample", range(8))
    labels = torch.zeros(8, dtype=torch.int64)
    free, narrow, none = (
        model.sample(labels, rng, GanSample(psi=psi)).var(dim=0).sum() for psi in (1.0, 0.3, 0.0)
    )
    assert free > narrow > none == 0
    assert GanSample().draws_from_p
    assert not GanSample(psi=0.3).draws_from_p
    assert GanSample().sampler != GanSample(psi=0.3).sampler


@pytest.mark.parametrize(("height", "width"), [(10, 8), (8, 27)])
def test_sides_that_do_not_fold_are_refused(height, width):
    spec = ImageSpec(channels=1, height=height, width=width)
    with pytest.raises(ConfigError, match=f"multiples of 4.*{height}x{width}.*resize.* to 8x"):
        make(spec)


def test_without_declared_noise_it_is_unscorable_and_says_why():
    model, batch = make(GREY), rows(GREY)
    with pytest.raises(Unscorable, match="a GAN has no density") as caught:
        Model.check_scorable(GanConfig.tiny(), GanScore())
    assert "\n" not in str(caught.value)
    with pytest.raises(Unscorable, match=r"score\.sigma: fit"):
        model.log_prob(batch, rng_of(batch), GanScore())
    Model.check_scorable(GanConfig.tiny(), GanScore(sigma="fit"))


def test_under_noise_it_has_a_density_with_the_right_label():
    model, batch = make(GREY), rows(GREY)
    options = GanScore.tiny().model_copy(update={"sigma": "fit", "fit_rounds": 10, "fit_rows": 4})
    ready = model.prepare_scores(batch, rng_of(batch), options)
    assert ready.metadata["gap_rows"] == options.simulated_rows
    found = model.log_prob(batch, rng_of(batch), ready.options)
    assert found.label == "stochastic_lower_bound"
    assert found.measure == "counts"
    assert found.budget["temperatures"] == options.ais.temperatures
    assert (found.nats_B < 0).all()


def test_the_critic_moves_n_times_for_once_of_the_generator(tmp_path):
    """Each time on rows of its own. What stops before G's first turn goes on as if it had not."""
    model = make(PLAIN, loss="wgan_gp")
    assert model.config.generator_every == 5
    optim = OptimConfig(lr=1e-3, warmup_nimg=0, floor=1.0)
    config = TrainConfig(
        nimg=72, batch=6, optim=optim, checkpoint_every_nimg=6, validate_every_nimg=6
    )

    def run(root: str, stop: int) -> tuple[TrainState, list[dict[str, torch.Tensor]]]:
        mine, seen = copy.deepcopy(model), []

        def batches(start: int):
            for nimg in range(start, stop, 6):
                seen.append({name: p.detach().clone() for name, p in mine.named_parameters()})
                batch = rows(PLAIN)
                yield Batch(batch.pixels_BCHW, None, torch.arange(nimg, nimg + 6))
            raise ConnectionError("the power failed")

        spec = ModelConfig(family="gan", net={}, spec=PLAIN, stats=mine.stats)
        validation = Validation(rows(PLAIN), 0, "fp32")
        plan = Plan(config, 0, root, Checkpoints(root, "n", spec), validation)
        return train(mine, batches, SingleProcess(), plan), seen

    straight, seen = run(str(tmp_path / "straight"), 72)
    seen.append({name: p.detach() for name, p in straight.model.named_parameters()})
    for step, (before, after) in enumerate(itertools.pairwise(seen), start=1):
        for name, value in before.items():
            turn = name.startswith("discriminator") or step in (5, 10)
            assert torch.equal(value, after[name]) != turn, (step, name)
    timings = {
        o.phase.name: int(next(iter(o.adamw.state.values()))["step"]) for o in straight.optimisers
    }
    assert timings == {"discriminator": 12, "generator": 2}
    with pytest.raises(ConnectionError):
        run(str(tmp_path / "cut"), 18)
    assert run(str(tmp_path / "cut"), 72)[0].files() == straight.files()
    first = read_metrics(str(tmp_path / "cut"))[0].metrics
    assert "val/discriminator/loss" in first
    assert "val/generator/loss" not in first


def test_weights_are_a_function_of_the_seed():
    one, same, other = make(GREY, 1), make(GREY, 1), make(GREY, 2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.generator.base.weight, other.generator.base.weight)
