"""The importance-weighted bound on a linear Gaussian model, whose marginal is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from genmod.distributions.gaussian import Gaussian
from genmod.likelihood import iwae
from genmod.rng import rng_for

ROWS, NOISE = 200, 0.7
SLOPE_Z = torch.tensor([1.5, -0.8], dtype=torch.float64)
"""x = diag(slope) z + noise eps: the posterior is diagonal, so a diagonal q can be exact."""
X_BZ = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def log_joint(z_NZ: torch.Tensor, row_N: torch.Tensor) -> torch.Tensor:
    zeros, log_noise = torch.zeros_like(z_NZ), torch.full_like(z_NZ, math.log(NOISE))
    likelihood = Gaussian(z_NZ * SLOPE_Z, log_noise).nats(X_BZ[row_N])
    return likelihood + Gaussian(zeros, zeros).nats(z_NZ)


def exact_nats() -> torch.Tensor:
    covariance = torch.diag(SLOPE_Z**2 + NOISE**2)
    return MultivariateNormal(torch.zeros(2).double(), covariance).log_prob(X_BZ)


def exact_posterior() -> Gaussian:
    variance_Z = 1 / (1 + (SLOPE_Z / NOISE) ** 2)
    mean_BZ = variance_Z * SLOPE_Z / NOISE**2 * X_BZ
    return Gaussian(mean_BZ, (0.5 * variance_Z.log()).expand(ROWS, 2))


def wrong_posterior() -> Gaussian:
    right = exact_posterior()
    return Gaussian(right.mean_BZ + 0.2, right.log_std_BZ + 0.3)


def weights(posterior: Gaussian, samples: int, chunk: int = 512) -> torch.Tensor:
    rng = rng_for(0, "iwae", range(100, 100 + ROWS))
    return iwae.importance_log_weights(posterior, log_joint, rng, samples, chunk)


@pytest.mark.parametrize("k", [1, 7])
def test_the_exact_posterior_gives_the_exact_marginal(k):
    nats_B, stderr_B = iwae.iwae_bound(weights(exact_posterior(), 14), k)
    torch.testing.assert_close(nats_B, exact_nats(), rtol=0, atol=1e-12)
    assert float(stderr_B.max()) < 1e-12


def test_a_wrong_posterior_lowers_the_bound_and_samples_raise_it():
    samples_SB = weights(wrong_posterior(), 64 * 10)
    bounds = [iwae.iwae_bound(samples_SB, k) for k in (1, 4, 64)]
    gaps = [float((exact_nats() - nats_B).mean()) for nats_B, _ in bounds]
    assert gaps[0] > gaps[1] > gaps[2] > -1e-3
    assert gaps[0] > 20 * abs(gaps[2])


def test_k_1_is_the_elbo():
    """log p(x) - KL(q || p(z | x)), both in closed form here."""
    nats_B, stderr_B = iwae.iwae_bound(weights(wrong_posterior(), 200), 1)
    elbo_B = exact_nats() - wrong_posterior().kl_nats(exact_posterior()).sum(1)
    assert ((nats_B - elbo_B).abs() < 5 * stderr_B).all()


def test_one_evaluation_s_standard_error_is_the_spread_of_many():
    k, evaluations = 50, 20
    samples_SB = weights(wrong_posterior(), k * evaluations)
    each = [iwae.iwae_bound(part_KB, k) for part_KB in samples_SB.split(k)]
    spread_B = torch.stack([nats_B for nats_B, _ in each]).var(0)
    claimed_B = torch.stack([stderr_B.square() for _, stderr_B in each]).mean(0)
    assert float(claimed_B.sum() / spread_B.sum()) == pytest.approx(1, abs=0.1)


def test_repeats_average_and_shrink_the_error():
    samples_SB = weights(wrong_posterior(), 60)
    nats_B, _ = iwae.iwae_bound(samples_SB, 20)
    parts = torch.stack([iwae.iwae_bound(part_KB, 20)[0] for part_KB in samples_SB.split(20)])
    torch.testing.assert_close(nats_B, parts.mean(0))


def test_a_single_sample_has_no_standard_error():
    _, stderr_B = iwae.iwae_bound(weights(wrong_posterior(), 1), 1)
    assert stderr_B.isnan().all()


def test_chunk_and_number_of_samples_do_not_change_a_sample():
    whole_SB = weights(wrong_posterior(), 10, chunk=1000)
    torch.testing.assert_close(weights(wrong_posterior(), 10, chunk=1), whole_SB, rtol=0, atol=0)
    torch.testing.assert_close(weights(wrong_posterior(), 4), whole_SB[:4], rtol=0, atol=0)


def test_rows_do_not_depend_on_the_batch():
    whole_SB = weights(wrong_posterior(), 5)
    part = wrong_posterior().rows(torch.tensor([4]))
    alone_SB = iwae.importance_log_weights(
        part, lambda z_NZ, row_N: log_joint(z_NZ, row_N + 4), rng_for(0, "iwae", [104]), 5, 64
    )
    torch.testing.assert_close(alone_SB, whole_SB[:, 4:5], rtol=0, atol=1e-12)
