"""The probability flow's density against Gaussians and mixtures, where it is known in closed form."""

import itertools
import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from genmod.likelihood.ode import FixedSteps, log_density_fixed
from genmod.likelihood.process import GaussianPrior
from genmod.rng import rng_for

MU, S = 0.3, 0.5
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
SHAPE = (2, 3, 2)
DIMS = 12


def gaussian(x, sigma):
    """D(x; sigma) of data from N(MU, S^2 I)."""
    return (S**2 * x + sigma**2 * MU) / (S**2 + sigma**2)


def grid(steps=64, order=4, sigma_max=SIGMA_MAX):
    return FixedSteps(steps, order, SIGMA_MIN, sigma_max)


def prior(channels, std, mean=MU):
    return GaussianPrior(torch.full((channels, 1, 1), mean, dtype=torch.float64), std)


def data(rows):
    return MU + S * rng_for(2, "data", range(rows)).normal(*SHAPE, dtype=torch.float64)


def probes(rows, draw=0):
    return rng_for(3, "probe", range(rows)).at(draw).rademacher(*SHAPE, dtype=torch.float64)


def normal_nats(x, std):
    """log N(x; MU, std^2 I)."""
    truth = Normal(torch.tensor(MU, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))
    return truth.log_prob(x).flatten(1).sum(1)


def closed_form(x):
    return normal_nats(x, math.hypot(S, SIGMA_MIN))


@pytest.mark.parametrize("exact", [False, True])
def test_gaussian_has_its_own_density(exact):
    x = data(5)
    nats = log_density_fixed(
        gaussian, x, None if exact else probes(5), grid(), prior(2, math.hypot(S, SIGMA_MAX))
    )
    assert nats.dtype == torch.float64
    assert torch.allclose(nats, closed_form(x), atol=1e-5)


def test_the_right_direction():
    """Nearer to the mean is likelier, and a narrower model gives its own data more."""
    near, far = torch.full((1, *SHAPE), MU), torch.full((1, *SHAPE), MU + 3 * S)
    p = prior(2, math.hypot(S, SIGMA_MAX))
    gap = log_density_fixed(gaussian, near, None, grid(), p) - log_density_fixed(
        gaussian, far, None, grid(), p
    )
    assert gap.item() == pytest.approx(DIMS * 4.5, rel=1e-3)


@pytest.mark.parametrize(("order", "slope"), [(1, 2), (2, 3), (3, 4), (4, 4)])
def test_order_of_convergence(order, slope):
    """The corrector's polynomial has one value more than ``order``; the quadrature is of order 4."""
    x = data(4)
    p = prior(2, math.hypot(S, SIGMA_MAX))

    def error(steps):
        nats = log_density_fixed(gaussian, x, probes(4), grid(steps, order), p)
        return (nats - closed_form(x)).abs().max().item()

    assert math.log2(error(32) / error(128)) / 2 > slope - 0.1
    assert error(24) < 1.0


def test_constant_and_identity_denoisers_cost_no_error():
    """Data without variance, and noise without effect: few steps are as good as many."""
    x = data(3)
    p = prior(2, SIGMA_MAX)
    still = log_density_fixed(lambda x, sigma: x, x, probes(3), grid(8), p)
    assert torch.allclose(still, p.nats(x), atol=1e-9)
    point = log_density_fixed(lambda x, sigma: 0 * x + MU, x, probes(3), grid(8), p)
    assert torch.allclose(point, normal_nats(x, SIGMA_MIN), rtol=1e-9)


def test_grid_covers_the_range():
    times = grid(10).times()
    assert len(times) == 11
    assert math.exp(times[0]) == pytest.approx(SIGMA_MIN)
    assert math.exp(times[-1]) == pytest.approx(SIGMA_MAX)
    assert all(a < b for a, b in itertools.pairwise(times))


def correlated(dims=4):
    """Covariance and denoiser of N(0, A), of shape (1, 1, dims)."""
    root = rng_for(4, "root", range(dims)).normal(dims, dtype=torch.float64)
    covariance = root @ root.T / dims + 0.1 * torch.eye(dims, dtype=torch.float64)

    def denoise(x, sigma):
        noisy = covariance + sigma**2 * torch.eye(dims, dtype=torch.float64)
        return x @ torch.linalg.solve(noisy, covariance)

    return covariance, denoise


def test_exact_trace_with_correlated_dimensions():
    covariance, denoise = correlated()
    noisy = covariance + SIGMA_MIN**2 * torch.eye(4, dtype=torch.float64)
    truth = MultivariateNormal(torch.zeros(4, dtype=torch.float64), noisy)
    x = truth.mean + rng_for(0, "x", range(6)).normal(1, 1, 4, dtype=torch.float64)
    nats = log_density_fixed(denoise, x, None, grid(100, sigma_max=1000.0), prior(1, 1000.0, 0.0))
    assert torch.allclose(nats, truth.log_prob(x.flatten(1)), atol=1e-4)


def test_probes_are_unbiased():
    _, denoise = correlated()
    x = rng_for(0, "x", range(1)).normal(1, 1, 4, dtype=torch.float64)
    exact = log_density_fixed(denoise, x, None, grid(), prior(1, SIGMA_MAX, 0.0))
    draws = 400
    many = rng_for(1, "probe", range(draws)).rademacher(1, 1, 4, dtype=torch.float64)
    nats = log_density_fixed(
        denoise, x.expand(draws, 1, 1, 4), many, grid(), prior(1, SIGMA_MAX, 0.0)
    )
    stderr = nats.std().item() / math.sqrt(draws)
    assert stderr > 0.01  # the probes do scatter
    assert nats.mean().item() == pytest.approx(exact.item(), abs=4 * stderr)


def test_density_of_a_mixture_is_the_mixture_and_integrates_to_one():
    """Two modes, one dimension: the flow is far from linear."""
    centre, width = 0.6, 0.2

    def density(x, sigma):
        std = math.hypot(width, sigma)
        return 0.5 * (
            Normal(-centre, std).log_prob(x).exp() + Normal(centre, std).log_prob(x).exp()
        )

    def denoise(x, sigma):
        """Tweedie: x + sigma^2 d/dx log p(x; sigma)."""
        variance = width**2 + sigma**2
        mean = centre * torch.tanh(centre * x / variance)
        return (width**2 * x + sigma**2 * mean) / variance

    x = torch.linspace(-2, 2, 801, dtype=torch.float64)
    std = math.sqrt(SIGMA_MAX**2 + width**2 + centre**2)
    nats = log_density_fixed(denoise, x[:, None, None, None], None, grid(100), prior(1, std, 0.0))
    assert torch.allclose(nats.exp(), density(x, SIGMA_MIN), atol=1e-4)
    assert torch.trapezoid(nats.exp(), x).item() == pytest.approx(1, abs=1e-4)


def test_rows_do_not_depend_on_each_other():
    def nonlinear(x, sigma):
        return gaussian(x, sigma) + 0.1 * torch.tanh(x.flip(3))

    x, v, p = data(6), probes(6), prior(2, SIGMA_MAX)
    whole = log_density_fixed(nonlinear, x, v, grid(6), p)
    singly = [
        log_density_fixed(nonlinear, x[i : i + 1], v[i : i + 1], grid(6), p) for i in range(6)
    ]
    assert torch.allclose(whole, torch.cat(singly), rtol=0, atol=1e-10)


def test_budget_counts_the_calls():
    calls = []

    def counting(x, sigma):
        calls.append(sigma)
        return gaussian(x, sigma)

    log_density_fixed(counting, data(1), probes(1), grid(9), prior(2, SIGMA_MAX))
    assert grid(9).budget()["evaluations"] == len(calls)
    assert calls == sorted(calls)  # upwards
