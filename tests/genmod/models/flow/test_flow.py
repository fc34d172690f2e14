"""The normalising flow: its density is exact, which quadrature and the Jacobian say independently."""

import math

import pytest
import torch
from pydantic import ValidationError

from genmod import units
from genmod.interface.batch import Batch
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.manifest import ImageSpec
from genmod.models.flow import BoxSpline, FlowConfig, FlowScore, Model
from genmod.rng import rng_for

PAIR = ImageSpec(channels=1, height=1, width=2, levels=2)
GREY = ImageSpec(channels=1, height=2, width=3, classes=3)


def build(spec=GREY, dtype=torch.float64, **net):
    """A flow with weights as after some training: far from the identity."""
    config = FlowConfig(**({"widths": (12,), "bins": 4, "transforms": 3} | net))
    stats = DataStats(mean=(0.0,) * spec.channels, std=(0.5,) * spec.channels)
    model = ModelConfig(
        family="flow", net=config.model_dump(mode="json"), spec=spec, stats=stats
    ).build()
    assert isinstance(model, Model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return model.to(dtype)


def points(rows, dims):
    return 2 * rng_for(4, "points", range(rows)).uniform(dims, dtype=torch.float64) - 1


def batch(rows, spec=GREY):
    rng = rng_for(9, "images", range(rows))
    labels = torch.arange(rows) % spec.classes if spec.classes else None
    return Batch(rng.integers(256, *spec.shape).to(torch.uint8), labels, rng.index_B)


both_orders = pytest.mark.parametrize("order", ["coupling", "autoregressive"])


@both_orders
def test_log_density_is_the_jacobians(order):
    model = build(order=order)
    for label, y_D in enumerate(points(3, GREY.dims)):
        e_BE = model.classes(torch.tensor([label]))

        def splines(y_D, e_BE=e_BE):
            return model.splines(y_D[None], e_BE)[0][0]

        jacobian = torch.autograd.functional.jacobian(splines, y_D)
        expected = torch.linalg.slogdet(jacobian).logabsdet - GREY.dims * math.log(2)
        nats_B = model.splines(y_D[None], e_BE)[1]
        assert nats_B.item() == pytest.approx(expected.item(), abs=1e-9)
        assert abs(nats_B.item() + GREY.dims * math.log(2)) > 0.05  # not the uniform density


@both_orders
def test_inverse_goes_back(order):
    model, y_BD = build(order=order), points(200, GREY.dims)
    e_BE = model.classes(torch.arange(200) % 3)
    z_BD, _ = model.splines(y_BD, e_BE)
    assert z_BD.abs().max() <= 1
    torch.testing.assert_close(model.splines.inverse(z_BD, e_BE), y_BD, rtol=0, atol=1e-8)


def test_the_ends_of_the_box_stay():
    raw = 3 * torch.randn(1, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spline = BoxSpline(raw[..., :4], raw[..., 4:8], torch.linspace(-2, 2, 5, dtype=torch.float64))
    ends = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None]
    z, log_slope = spline.call_and_ladj(ends)
    torch.testing.assert_close(z, ends, rtol=0, atol=1e-12)
    assert log_slope[0, 0].item() == pytest.approx(-2 / (1 + 2 / math.log(1e3)))
    assert log_slope[1, 0].item() == pytest.approx(2 / (1 + 2 / math.log(1e3)))


def density_of_pairs(model, cells=800):
    """Integrals of the density over the four squares that the images of two binary pixels are."""
    side = (torch.arange(cells, dtype=torch.float64) + 0.5) * (2 / cells) - 1
    grid_ND = torch.cartesian_prod(side, side)
    with torch.no_grad():
        mass = (model.splines(grid_ND, None)[1].exp() * (2 / cells) ** 2).view(cells, cells)
    half = cells // 2
    return mass.view(2, half, 2, half).sum((1, 3)).flatten()


@pytest.mark.slow
@both_orders
def test_density_integrates_to_one(order):
    masses = density_of_pairs(build(PAIR, order=order))
    assert masses.sum().item() == pytest.approx(1, abs=1e-4)
    assert masses.std() > 0.05  # and it is not uniform


def pairs():
    pixels = torch.tensor([[0, 0], [0, 255], [255, 0], [255, 255]], dtype=torch.uint8)
    return Batch(pixels.view(4, 1, 1, 2), None, torch.arange(4))


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 512])
def test_bounds_the_probability_of_the_pixels(k):
    model = build(PAIR)
    truth = density_of_pairs(model).log()
    score = model.log_prob(pairs(), rng_for(1, "s", range(4)), FlowScore(k=k, repeats=8))
    gap = truth - score.nats_B
    assert (gap > -4 * score.stderr_B - 1e-4).all()
    assert score.label == ("lower_bound" if k == 1 else "stochastic_lower_bound")
    assert score.measure == "counts"
    if k == 1:
        assert gap.max() > 0.01  # a mean of logarithms is not the logarithm of the mean
    if k == 512:
        assert (gap < 4 * score.stderr_B + 5e-3).all()


@pytest.mark.slow
def test_draws_follow_the_density():
    model, rows = build(PAIR), 6000
    x = model.sample(None, rng_for(3, "s", range(rows)), model.Sample())
    pixels = units.to_pixels(x).flatten(1)
    assert set(pixels.unique().tolist()) == {0, 255}
    number = (pixels[:, 0] > 0).long() * 2 + (pixels[:, 1] > 0).long()
    share, truth = torch.bincount(number, minlength=4) / rows, density_of_pairs(model)
    assert ((share - truth).abs() < 4 * (truth * (1 - truth) / rows).sqrt()).all()


def test_exact_is_said_of_the_density_alone():
    model, rows = build(), batch(5)
    score = model.log_prob(rows, rng_for(1, "s", range(5)), FlowScore(dequantise="none"))
    assert (score.label, score.measure) == ("exact", "lebesgue[-1,1]")
    assert score.stderr_B.abs().max() == 0
    e_BE = model.classes(rows.labels_B)
    expected = model.splines(rows.x_BCHW(torch.float64).flatten(1), e_BE)[1]
    assert torch.equal(score.nats_B, expected)


@pytest.mark.parametrize("options", [FlowScore(), FlowScore(dequantise="none")])
def test_scores_are_float64_whatever_the_weights_are_stored_in(options):
    single = build(dtype=torch.float32)
    double = build(dtype=torch.float32).double()
    rng = rng_for(1, "s", range(4))
    scores = [model.log_prob(batch(4), rng, options).nats_B for model in (single, double)]
    assert torch.equal(*scores)
    assert next(single.parameters()).dtype == torch.float32


def test_a_new_model_is_nearly_uniform():
    spec = ImageSpec(channels=1, height=8, width=8)
    stats = DataStats(mean=(0.0,), std=(0.5,))
    model = ModelConfig(family="flow", net={}, spec=spec, stats=stats).build()
    score = model.log_prob(batch(20, spec), rng_for(1, "s", range(20)), FlowScore())
    assert units.bits_per_dim(score.nats_B.mean(), spec.dims).item() == pytest.approx(8, abs=0.1)


def test_learns_a_law_between_pixels():
    """Second pixel equal to the first: after a short training the bound nears the entropy of one pixel."""
    spec = ImageSpec(channels=1, height=1, width=2)
    model = build(spec, torch.float32, bins=8, widths=(32,), order="autoregressive")
    descend = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(300):
        rng = rng_for(0, "t", range(step * 128, (step + 1) * 128))
        first = 96 + rng.integers(64, 1, 1, 1)
        pixels = torch.cat((first, first), 3).to(torch.uint8)
        descend.zero_grad()
        losses = model.loss("likelihood", Batch(pixels, None, rng.index_B), rng, 0)
        losses.total.backward()
        descend.step()
    entropy_nats = math.log(64)
    uniform_nats = 2 * math.log(256)
    assert entropy_nats - 0.1 < losses.terms["nll_nats"].item() < uniform_nats - 5


def test_one_draw_has_no_standard_error():
    with pytest.raises(ValidationError, match="repeats"):
        FlowScore(k=1, repeats=1)


def test_widths_are_positive():
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        FlowConfig(widths=(0,))


@pytest.mark.parametrize("label", [0, 1])
def test_an_image_of_one_pixel_is_a_flow_too(label):
    model = build(ImageSpec(channels=1, height=1, width=1, classes=2))
    y = (torch.arange(30_000, dtype=torch.float64) + 0.5) / 15_000 - 1
    e_BE = model.classes(torch.full_like(y, label, dtype=torch.int64))
    with torch.no_grad():
        nats_B = model.splines(y[:, None], e_BE)[1]
    assert nats_B.exp().mean().item() * 2 == pytest.approx(1, abs=1e-4)


def test_chunks_do_not_matter():
    model, rng = build(), rng_for(1, "s", range(5))
    whole = model.log_prob(batch(5), rng, FlowScore(k=2, repeats=3))
    parts = model.log_prob(batch(5), rng, FlowScore(k=2, repeats=3, chunk=7))
    torch.testing.assert_close(whole.nats_B, parts.nats_B, rtol=0, atol=1e-10)
