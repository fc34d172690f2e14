"""Diagonal Gaussians against torch.distributions and Monte Carlo."""

from __future__ import annotations

import torch
from torch.distributions import Normal, kl_divergence

from genmod.distributions.gaussian import Gaussian
from genmod.rng import rng_for


def some(seed: int) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    mean_BZ = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    return Gaussian(mean_BZ, torch.randn(4, 3, generator=generator, dtype=torch.float64) * 0.5)


def peer(gaussian: Gaussian) -> Normal:
    return Normal(gaussian.mean_BZ, gaussian.log_std_BZ.exp())


def test_density_and_divergence_agree_with_torch():
    p, q, z_BZ = some(0), some(1), some(2).mean_BZ
    torch.testing.assert_close(p.nats(z_BZ), peer(p).log_prob(z_BZ).sum(1))
    torch.testing.assert_close(q.kl_nats(p), kl_divergence(peer(q), peer(p)))


def test_divergence_agrees_with_monte_carlo():
    p, q = some(0), some(1)
    copies = 20_000
    row_N = torch.arange(4).repeat_interleave(copies)
    z_NZ = q.rows(row_N).draw(rng_for(3, "kl", range(4 * copies)))
    ratio_BS = (q.rows(row_N).nats(z_NZ) - p.rows(row_N).nats(z_NZ)).view(4, copies)
    stderr_B = ratio_BS.std(1) / copies**0.5
    assert ((ratio_BS.mean(1) - q.kl_nats(p).sum(1)).abs() < 4 * stderr_B).all()


def test_divergence_from_itself_is_zero_and_else_positive():
    p, q = some(0), some(1)
    torch.testing.assert_close(p.kl_nats(p), torch.zeros(4, 3, dtype=torch.float64))
    assert (q.kl_nats(p) > 0).all()


def test_temperature_scales_the_deviation_from_the_mean():
    p, rng = some(0), rng_for(0, "z", range(4))
    whole = p.draw(rng) - p.mean_BZ
    torch.testing.assert_close(p.draw(rng, 0.5) - p.mean_BZ, 0.5 * whole)
