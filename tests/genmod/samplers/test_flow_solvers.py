"""Samplers against a Gaussian, whose denoiser and flow are known in closed form."""

import math

import pytest
import torch
from pydantic import ValidationError

from genmod.errors import ConfigError
from genmod.rng import rng_for
from genmod.samplers.ancestral import ancestral, consistency
from genmod.samplers.ddpm import ddpm_schedule
from genmod.samplers.flow import FlowSolver
from genmod.samplers.guidance import guided
from genmod.samplers.multistep import dpm_solver, unipc
from genmod.samplers.ode import Churn, ddim, heun
from genmod.samplers.schedule import TrainingNoise, edm_sigmas

MU, S = 0.3, 0.5
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0


def gaussian(x, sigma):
    """D(x; sigma) of data from N(MU, S^2 I)."""
    return (S**2 * x + sigma**2 * MU) / (S**2 + sigma**2)


def flow_to(x, start, end):
    """Where the flow takes x: standardised values stay."""
    return MU + (x - MU) * math.sqrt((S**2 + end**2) / (S**2 + start**2))


def starts(count, shape=(1, 4, 4)):
    rng = rng_for(5, "start", range(count))
    return MU + math.hypot(SIGMA_MAX, S) * rng.normal(*shape, dtype=torch.float64)


def test_schedule_by_hand():
    sigmas = edm_sigmas(3, 0.01, 4.0, 2.0)
    assert sigmas.tolist() == [4.0, pytest.approx(((2.0 + 0.1) / 2) ** 2), 0.01, 0.0]
    assert edm_sigmas(1, 0.01, 4.0, 2.0).tolist() == [4.0, 0.0]


def test_schedule_falls_from_max_to_min_to_zero():
    sigmas = edm_sigmas(18, SIGMA_MIN, SIGMA_MAX, 7.0)
    assert sigmas.dtype == torch.float64
    assert (sigmas[:-1] > sigmas[1:]).all()
    assert (sigmas[0], sigmas[-2], sigmas[-1]) == (SIGMA_MAX, SIGMA_MIN, 0.0)


MIDDLES = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


def test_training_noise_has_its_mean_and_spread():
    noise = TrainingNoise(P_mean=-0.4, P_std=1.5, uniform_share=0.0)
    t = noise.quantile(MIDDLES, SIGMA_MIN, SIGMA_MAX).log()
    assert t.mean().item() == pytest.approx(-0.4, abs=1e-6)
    assert t.std().item() == pytest.approx(1.5, rel=1e-3)
    assert (t[1:] > t[:-1]).all()


def test_training_noise_from_anywhere_in_the_range():
    low, high = math.log(SIGMA_MIN), math.log(SIGMA_MAX)
    t = TrainingNoise(uniform_share=1.0).quantile(MIDDLES, SIGMA_MIN, SIGMA_MAX).log()
    assert torch.allclose(t, low + (high - low) * MIDDLES)
    some = (
        TrainingNoise(P_std=0.01, uniform_share=0.25).quantile(MIDDLES, SIGMA_MIN, SIGMA_MAX).log()
    )
    assert torch.allclose(some[:5000], low + (high - low) * 4 * MIDDLES[:5000])
    assert ((some[5000:] + 1.2).abs() < 0.1).all()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ddpm_training_noise_is_uniform_over_its_levels(schedule):
    noise = TrainingNoise(schedule=schedule)
    drawn = noise.quantile(MIDDLES, SIGMA_MIN, SIGMA_MAX)
    assert torch.equal(drawn.unique(), ddpm_schedule(schedule).sigma_T)
    assert (drawn.unique(return_counts=True)[1] == 20).all()
    with pytest.raises(ConfigError, match=r"net\.noise\.schedule=.*: got net\.sigma_min"):
        noise.check_range(1e-4, SIGMA_MAX)
    noise.check_range(0.02, SIGMA_MAX)


def test_settings_of_another_schedule_are_refused():
    with pytest.raises(ValidationError, match="applies only to schedule lognormal"):
        TrainingNoise(schedule="linear", P_mean=-0.4)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_time_and_level_are_inverse(schedule):
    of = ddpm_schedule(schedule)
    for time in (1, 2, 500, 999, 1000):
        assert of.time(float(of.sigma_T[time - 1])) == pytest.approx(time, abs=1e-9)
    low, high = float(of.sigma_T[9]), float(of.sigma_T[989])
    assert torch.allclose(of.spaced(981, low, high)[:-1], of.sigma_T[9:990].flip(0), rtol=1e-9)


@pytest.mark.parametrize(("method", "order"), [(ddim, 1), (heun, 2), (dpm_solver, 2), (unipc, 4)])
def test_order_of_convergence(method, order):
    """UniPC's predictor is of order 3, and its corrector makes it one more."""
    x = starts(4)

    def error(steps):
        # The last step, to 0, is Euler's.
        sigmas = edm_sigmas(steps, SIGMA_MIN, SIGMA_MAX, 7.0)[:-1]
        exact = flow_to(x, SIGMA_MAX, SIGMA_MIN)
        return (method(gaussian, x, sigmas) - exact).abs().max().item()

    observed = math.log2(error(65) / error(129))
    assert observed == pytest.approx(order, abs=0.15)


def test_reaches_mean_and_std_of_the_data():
    x = heun(gaussian, starts(2000), edm_sigmas(32, SIGMA_MIN, SIGMA_MAX, 7.0))
    count = x.numel()
    assert x.mean().item() == pytest.approx(MU, abs=4 * S / math.sqrt(count))
    assert x.std().item() == pytest.approx(S, abs=0.005 + 4 * S / math.sqrt(2 * count))


def test_calls_of_the_denoiser():
    calls = []

    def counting(x, sigma):
        calls.append(sigma)
        return gaussian(x, sigma)

    sigmas = edm_sigmas(9, SIGMA_MIN, SIGMA_MAX, 7.0)
    heun(counting, starts(1), sigmas)
    assert len(calls) == 17
    calls.clear()
    ddim(counting, starts(1), sigmas)
    assert calls == sigmas[:-1].tolist()


@pytest.mark.parametrize("method", [dpm_solver, unipc])
def test_multistep_calls_once_a_step(method):
    calls = []

    def counting(x, sigma):
        calls.append(sigma)
        return gaussian(x, sigma)

    sigmas = edm_sigmas(9, SIGMA_MIN, SIGMA_MAX, 7.0)
    method(counting, starts(1), sigmas)
    assert calls == sigmas[:-1].tolist()
    assert FlowSolver(solver="unipc", steps=9).nfe == 9
    assert FlowSolver(steps=9).nfe == 17


@pytest.mark.parametrize("method", [ddim, dpm_solver, unipc])
def test_one_step_gives_the_denoised_image(method):
    x = starts(3)
    assert torch.allclose(method(gaussian, x, torch.tensor([80.0, 0.0])), gaussian(x, 80.0))


def test_ancestral_draws_from_the_data():
    sigmas = ddpm_schedule("linear").spaced(1000, 0.0101, 80.0)
    x = ancestral(gaussian, starts(1500), sigmas, rng_for(0, "a", range(1500)))
    assert x.mean().item() == pytest.approx(MU, abs=4 * S / math.sqrt(x.numel()))
    assert x.std().item() == pytest.approx(S, rel=0.02)


def test_consistency_of_the_exact_function_draws_from_the_data():
    """The exact function is the end of the flow, so any number of calls draws from the data."""
    options = FlowSolver(solver="consistency", steps=3, last=0.5)
    assert options.sigmas(SIGMA_MIN, SIGMA_MAX).tolist() == [80.0, pytest.approx(40.0**0.5), 0.5]
    x = consistency(
        lambda x, sigma: flow_to(x, sigma, 0.0),
        starts(1500),
        options.sigmas(SIGMA_MIN, SIGMA_MAX),
        rng_for(0, "c", range(1500)),
    )
    assert x.mean().item() == pytest.approx(MU, abs=4 * S / math.sqrt(x.numel()))
    assert x.std().item() == pytest.approx(S, rel=0.02)


@pytest.mark.parametrize("spacing", ["edm", "log", "linear", "cosine"])
def test_every_spacing_decreases_from_max_to_min_to_zero(spacing):
    sigmas = FlowSolver(spacing=spacing, steps=7).sigmas(0.02, SIGMA_MAX)
    assert sigmas.shape == (8,)
    assert (sigmas[:-1] > sigmas[1:]).all()
    assert (sigmas[0], sigmas[-2], sigmas[-1]) == (SIGMA_MAX, 0.02, 0.0)
    assert FlowSolver(spacing=spacing, steps=1).sigmas(0.02, SIGMA_MAX).tolist() == [80.0, 0.0]


def test_levels_outside_of_a_schedule_are_refused():
    with pytest.raises(ConfigError, match=r"range 0\.0100.* \.\. 157"):
        FlowSolver(spacing="linear").sigmas(SIGMA_MIN, SIGMA_MAX)
    with pytest.raises(ConfigError, match=r"less than net\.sigma_max"):
        FlowSolver(solver="consistency", last=90).sigmas(SIGMA_MIN, SIGMA_MAX)


def test_churn_needs_heun_or_ddim():
    with pytest.raises(ValidationError, match="needs solver heun or ddim"):
        FlowSolver(solver="unipc", churn=1)


def test_float64_state_around_a_float32_net():
    def single(x, sigma):
        return gaussian(x.float(), sigma).double()

    sigmas = edm_sigmas(18, SIGMA_MIN, SIGMA_MAX, 7.0)
    x = heun(single, starts(8).float(), sigmas)
    assert x.dtype == torch.float64
    assert torch.allclose(x, heun(gaussian, starts(8), sigmas), atol=1e-5)


def test_churn_keeps_the_distribution():
    churn = Churn(total=30, sigma_low=0.05, sigma_high=50, noise_scale=1.0)
    rng = rng_for(0, "churn", range(2000))
    sigmas = edm_sigmas(64, SIGMA_MIN, SIGMA_MAX, 7.0)
    x = heun(gaussian, starts(2000), sigmas, rng, churn)
    still = heun(gaussian, starts(2000), sigmas)
    assert (x - still).abs().mean() > 0.1  # it did something
    assert x.mean().item() == pytest.approx(MU, abs=4 * S / math.sqrt(x.numel()))
    assert x.std().item() == pytest.approx(S, abs=0.01)


def test_churn_is_limited_to_its_levels():
    churn = Churn(total=1000, sigma_low=0.1, sigma_high=2.0, noise_scale=1.0)
    assert churn.factor(0.05, 10) == 0
    assert churn.factor(3.0, 10) == 0
    assert churn.factor(1.0, 10) == pytest.approx(math.sqrt(2) - 1)
    assert churn.factor(1.0, 10_000) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "options",
    [
        FlowSolver(steps=6, churn=10),
        FlowSolver(solver="dpm_solver", steps=6),
        FlowSolver(solver="unipc", steps=6),
        FlowSolver(solver="ancestral", steps=6),
        FlowSolver(solver="consistency", steps=3),
    ],
    ids=lambda options: options.solver,
)
def test_rows_do_not_depend_on_each_other(options):
    rng, x = rng_for(1, "rows", range(7)), starts(7)
    whole = options.solve(gaussian, x, rng, SIGMA_MIN, SIGMA_MAX)
    one = options.solve(gaussian, x[3:4], rng.rows(slice(3, 4)), SIGMA_MIN, SIGMA_MAX)
    assert torch.equal(whole[3:4], one)


def test_which_solvers_follow_the_flow():
    assert FlowSolver().solves_the_flow
    assert FlowSolver(solver="ddim", steps=50).solves_the_flow
    assert not FlowSolver(solver="ddim", steps=18).solves_the_flow
    assert not FlowSolver(steps=4).solves_the_flow
    assert not FlowSolver(churn=1).solves_the_flow


def constant(value):
    return lambda x, sigma: torch.full_like(x, value)


def test_guidance_extrapolates():
    x = torch.zeros(1, 1, 2, 2)
    assert (guided(constant(3.0), constant(1.0), 2.5)(x, 1.0) == 1 + 2.5 * 2).all()
    assert (guided(constant(3.0), constant(1.0), 0.0)(x, 1.0) == 1).all()


def test_no_guidance_is_the_conditional_alone():
    def forbidden(x, sigma):
        raise AssertionError("called")

    x = torch.zeros(1, 1, 2, 2)
    assert (guided(constant(3.0), forbidden, 1.0)(x, 1.0) == 3).all()
    limited = guided(constant(3.0), forbidden, 2.0, (0.5, 1.0))
    assert (limited(x, 0.5) == 3).all()
    assert (limited(x, 1.1) == 3).all()
    assert (guided(constant(3.0), constant(1.0), 2.0, (0.5, 1.0))(x, 1.0) == 5).all()
