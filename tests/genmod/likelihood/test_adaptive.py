"""The adaptive solver against densities in closed form: as exact as asked, every row on its own."""

import math

import pytest
import torch

from genmod.distributions.closed_form import IsotropicMixture, LinearGaussian
from genmod.errors import GenmodError
from genmod.likelihood.adaptive import AdaptiveSteps, log_density_adaptive
from genmod.likelihood.ode import FixedSteps, log_density_fixed
from genmod.likelihood.process import GaussianPrior
from genmod.rng import rng_for

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
RING = IsotropicMixture.ring(6, 0.5, 0.1)


def span(tolerance=1e-6, scale=0.4):
    return AdaptiveSteps(SIGMA_MIN, SIGMA_MAX, scale, tolerance)


def denoiser(truth):
    return lambda x_BCHW, sigma_B: truth.denoise(x_BCHW.flatten(1), sigma_B).view_as(x_BCHW)


def prior(truth, scale=0.4):
    return GaussianPrior(truth.mean_D[:, None, None], math.hypot(SIGMA_MAX, scale))


def draw(truth, rows):
    rng = rng_for(2, "data", range(rows))
    x_BD = truth.draw(rng)
    noise_BD = rng.fold("least").normal(x_BD.shape[1], dtype=torch.float64)
    return (x_BD + SIGMA_MIN * noise_BD)[:, :, None, None]


def solve(truth, x_BCHW, tolerance=1e-6, probe_BCHW=None):
    return log_density_adaptive(denoiser(truth), x_BCHW, probe_BCHW, span(tolerance), prior(truth))


@pytest.mark.parametrize(
    "truth",
    [RING, IsotropicMixture.scattered(3, 16, 0.5, 0.15), LinearGaussian.example(6, 3, 0.2)],
    ids=["ring", "16-D", "gaussian"],
)
def test_known_densities(truth):
    x_BCHW = draw(truth, 40)
    nats_B = solve(truth, x_BCHW).nats_B
    assert nats_B.dtype == torch.float64
    truth_B = truth.nats(x_BCHW.flatten(1), SIGMA_MIN)
    torch.testing.assert_close(nats_B, truth_B, rtol=0, atol=2e-3)


def test_gaussian_data_need_few_steps():
    def denoise(x_BCHW, sigma_B):
        share_B = 0.16 / (0.16 + sigma_B**2)
        return 0.3 + share_B[:, None, None, None] * (x_BCHW - 0.3)

    mean = torch.full((1, 1, 1), 0.3, dtype=torch.float64)
    x_BCHW = torch.linspace(-1, 1, 5, dtype=torch.float64).view(-1, 1, 1, 1)
    found = log_density_adaptive(
        denoise, x_BCHW, None, span(), GaussianPrior(mean, math.hypot(SIGMA_MAX, 0.4))
    )
    std = torch.tensor(math.hypot(0.4, SIGMA_MIN), dtype=torch.float64)
    truth = torch.distributions.Normal(mean.flatten(), std)
    torch.testing.assert_close(found.nats_B, truth.log_prob(x_BCHW.flatten()), rtol=0, atol=1e-8)
    assert found.nfe_B.max() < 40


def test_errors_follow_the_tolerance():
    x_BCHW = draw(RING, 60)
    truth_B = RING.nats(x_BCHW.flatten(1), SIGMA_MIN)
    found = [solve(RING, x_BCHW, tolerance) for tolerance in (1e-3, 1e-5)]
    errors = [(f.nats_B - truth_B).abs().max().item() for f in found]
    assert errors[1] < errors[0] / 20
    assert (found[1].nfe_B > found[0].nfe_B).all()


def test_rows_have_independent_steps():
    """Alone or in company, a row takes the same steps; hard rows take more than easy ones."""
    x_BCHW = draw(RING, 30)
    x_BCHW[7] = torch.tensor([0.02, 0.01])[:, None, None]  # between all components
    whole = solve(RING, x_BCHW, 1e-4)
    for row in (0, 7, 29):
        single = solve(RING, x_BCHW[row : row + 1], 1e-4)
        assert single.nfe_B.item() == whole.nfe_B[row].item()
        torch.testing.assert_close(single.nats_B, whole.nats_B[row : row + 1], rtol=0, atol=1e-10)
    assert whole.nfe_B.unique().numel() > 2


def test_nfe_is_counted():
    calls = []

    def counting(x_BCHW, sigma_B):
        calls.append(sigma_B.item())
        return denoiser(RING)(x_BCHW, sigma_B)

    found = log_density_adaptive(counting, draw(RING, 1), None, span(1e-4), prior(RING))
    assert found.nfe_B.item() == len(calls)
    assert min(calls) == pytest.approx(SIGMA_MIN)
    assert max(calls) == pytest.approx(SIGMA_MAX)


def test_probes_have_no_bias():
    truth = IsotropicMixture.scattered(3, 16, 0.5, 0.15)
    x_BCHW = draw(truth, 1).expand(400, -1, -1, -1)
    probe_BCHW = rng_for(3, "probe", range(400)).rademacher(16, 1, 1, dtype=torch.float64)
    nats_B = solve(truth, x_BCHW, 1e-4, probe_BCHW).nats_B
    exact = solve(truth, x_BCHW[:1], 1e-4).nats_B
    assert abs(nats_B.mean() - exact).item() < 4 * nats_B.std().item() / 20


def test_density_integrates_to_one():
    truth = IsotropicMixture(torch.tensor([[-0.5], [0.4]], dtype=torch.float64), 0.1)
    x_B = torch.linspace(-1.5, 1.5, 601, dtype=torch.float64)
    nats_B = solve(truth, x_B[:, None, None, None], 1e-5).nats_B
    assert torch.trapezoid(nats_B.exp(), x_B).item() == pytest.approx(1, abs=1e-4)


def test_agrees_with_fixed_steps():
    x_BCHW = draw(RING, 10)
    fixed_B = log_density_fixed(
        lambda x, sigma: RING.denoise(x.flatten(1), torch.tensor(sigma).double()).view_as(x),
        x_BCHW,
        None,
        FixedSteps(800, 4, SIGMA_MIN, SIGMA_MAX),
        prior(RING),
    )
    torch.testing.assert_close(solve(RING, x_BCHW).nats_B, fixed_B, rtol=0, atol=1e-4)


def test_a_denoiser_that_returns_nan_is_an_error():
    with pytest.raises(GenmodError, match="did not reach the tolerance 1e-06"):
        log_density_adaptive(lambda x, s: x * math.nan, draw(RING, 3), None, span(), prior(RING))


def test_too_many_steps_are_an_error():
    few = AdaptiveSteps(SIGMA_MIN, SIGMA_MAX, 0.4, 1e-6, max_steps=5)
    with pytest.raises(GenmodError, match="in 5 steps"):
        log_density_adaptive(denoiser(RING), draw(RING, 3), None, few, prior(RING))
