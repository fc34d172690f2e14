"""A trained mixture as the prior against torch.distributions and Monte Carlo."""

from __future__ import annotations

import pytest
import torch
from torch import distributions as D

from genmod.distributions.gaussian import Gaussian
from genmod.distributions.prior import MixturePrior, Prior, StandardNormalPrior
from genmod.rng import rng_for

K, Z = 5, 3


def some() -> tuple[MixturePrior, D.MixtureSameFamily]:
    torch.manual_seed(0)
    prior = MixturePrior(K, Z).double()
    with torch.no_grad():
        prior.log_std_KZ.normal_(std=0.5)
        prior.logit_K.normal_()
        weights = D.Categorical(logits=prior.logit_K)
        each = D.Independent(D.Normal(prior.mean_KZ, prior.log_std_KZ.exp()), 1)
        return prior, D.MixtureSameFamily(weights, each)


def test_density_and_moments_agree_with_torch():
    prior, peer = some()
    z_NZ = 3 * torch.randn(50, Z, dtype=torch.float64)
    torch.testing.assert_close(prior.nats(z_NZ), peer.log_prob(z_NZ))
    moments = prior.moments(z_NZ)
    torch.testing.assert_close(moments.mean_BZ[0], peer.mean)
    torch.testing.assert_close((2 * moments.log_std_BZ[0]).exp(), peer.variance)


def test_draws_are_of_that_density():
    """Cross-entropy of draws is the entropy that torch's draws have, and so are mean and variance."""
    prior, peer = some()
    rows = 40_000
    with torch.no_grad():
        z_BZ = prior.draw(rng_for(0, "prior", range(rows)), Z, torch.float64)
        ours_B, theirs_B = prior.nats(z_BZ), peer.log_prob(peer.sample((rows,)))
    stderr = float((ours_B.var() + theirs_B.var()).sqrt()) / rows**0.5
    assert abs(float(ours_B.mean() - theirs_B.mean())) < 4 * stderr
    stderr_Z = (peer.variance / rows).sqrt()
    assert ((z_BZ.mean(0) - peer.mean).abs() < 4 * stderr_Z).all()
    torch.testing.assert_close(z_BZ.var(0), peer.variance, rtol=0.05, atol=0)


@pytest.mark.parametrize("prior", [StandardNormalPrior(), some()[0]], ids=["standard", "mixture"])
def test_divergence_agrees_with_monte_carlo(prior: Prior):
    copies = 20_000
    q = Gaussian(torch.randn(4, Z).double(), 0.5 * torch.randn(4, Z).double())
    row_N = torch.arange(4).repeat_interleave(copies)
    with torch.no_grad():
        z_NZ = q.rows(row_N).draw(rng_for(3, "kl", range(4 * copies)))
        kl_BS = prior.kl_nats(q.rows(row_N), z_NZ).sum(1).view(4, copies)
        ratio_BS = (q.rows(row_N).nats(z_NZ) - prior.nats(z_NZ)).view(4, copies)
    stderr_B = (ratio_BS.var(1) + kl_BS.var(1)).sqrt() / copies**0.5
    assert ((kl_BS.mean(1) - ratio_BS.mean(1)).abs() < 4 * stderr_B).all()


def test_one_component_at_rest_is_the_standard_normal():
    prior, z_NZ = MixturePrior(1, Z).double(), torch.randn(9, Z, dtype=torch.float64)
    with torch.no_grad():
        prior.mean_KZ.zero_()
        torch.testing.assert_close(prior.nats(z_NZ), StandardNormalPrior().nats(z_NZ))
