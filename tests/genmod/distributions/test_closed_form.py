"""Distributions in closed form: marginals, posteriors, denoisers and bin probabilities agree."""

import math

import pytest
import torch

from genmod.distributions.closed_form import IsotropicMixture, LinearGaussian
from genmod.rng import rng_for


def latent_grid(side, reach):
    edge = (torch.arange(side, dtype=torch.float64) + 0.5) * (2 * reach / side) - reach
    return torch.cartesian_prod(edge, edge), (2 * reach / side) ** 2


def test_marginal_is_the_integral_over_latents():
    truth = LinearGaussian.example(dims=4, latents=2, noise=0.6)
    x_BD = truth.draw(rng_for(0, "x", range(3)))
    z_NZ, area = latent_grid(400, 9.0)
    for x_D in x_BD:
        joint_N = truth.log_joint(x_D.expand(len(z_NZ), -1), z_NZ)
        integral = (joint_N.logsumexp(0) + math.log(area)).item()
        assert integral == pytest.approx(truth.nats(x_D[None]).item(), abs=1e-6)
        mean_1Z, covariance_ZZ = truth.posterior(x_D[None])
        weight_N = joint_N.softmax(0)
        torch.testing.assert_close(weight_N @ z_NZ, mean_1Z[0])
        centered_NZ = z_NZ - mean_1Z
        torch.testing.assert_close((weight_N[:, None] * centered_NZ).T @ centered_NZ, covariance_ZZ)


@pytest.mark.parametrize(
    "truth",
    [
        LinearGaussian.example(dims=3, latents=2, noise=0.5),
        IsotropicMixture.scattered(3, 4, 0.8, 0.3),
    ],
    ids=["gaussian", "mixture"],
)
@pytest.mark.parametrize("sigma", [0.05, 0.7])
def test_denoisers_follow_tweedies_formula(truth, sigma):
    """D(x) = x + sigma^2 d/dx log p(x; sigma)."""
    x_BD = truth.draw(rng_for(0, "x", range(5))).requires_grad_()
    (score_BD,) = torch.autograd.grad(truth.nats(x_BD, sigma).sum(), x_BD)
    denoised_BD = truth.denoise(x_BD, torch.tensor(sigma, dtype=torch.float64))
    torch.testing.assert_close(denoised_BD, x_BD + sigma**2 * score_BD)


def test_probabilities_of_bins_add_up_to_one():
    truth = IsotropicMixture.ring(3, 0.7, 0.3)  # much of its mass is outside [-1, 1]
    level_K = torch.arange(64)
    pixels_B2 = torch.cartesian_prod(level_K, level_K)
    nats_B = truth.bin_nats(pixels_B2, 64)
    assert nats_B.exp().sum().item() == pytest.approx(1, abs=1e-9)
    middle_B2 = (2 * pixels_B2.double() + 1) / 64 - 1
    inside = ((pixels_B2 > 0) & (pixels_B2 < 63)).all(1)
    density_B = truth.nats(middle_B2) + 2 * math.log(2 / 64)
    torch.testing.assert_close(nats_B[inside].exp(), density_B[inside].exp(), rtol=0.01, atol=1e-6)


def test_draws_have_the_mean_and_covariance():
    truth = LinearGaussian.example(dims=3, latents=2, noise=0.5)
    x_BD = truth.draw(rng_for(0, "x", range(20_000)))
    torch.testing.assert_close(torch.cov(x_BD.T), truth.covariance_DD, rtol=0, atol=0.08)
    torch.testing.assert_close(x_BD.mean(0), truth.mean_D, rtol=0, atol=0.05)
