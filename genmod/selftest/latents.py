"""Bounds of models with latent variables, on some whose marginals are known.

Letters: B rows, D dimensions, Z latents, N rows, K components.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genmod.distributions.gaussian import Gaussian, standard_normal
from genmod.distributions.prior import MixturePrior
from genmod.interface.log_prob import LogProb
from genmod.likelihood import iwae
from genmod.rng import rng_for
from genmod.selftest.check import EstimatorCheck, check_estimate
from genmod.selftest.truths import LinearGaussian

_BENCH = "linear-gaussian latents"
_ROWS = 200


def checks(seed: int) -> Iterator[EstimatorCheck]:
    """The ELBO meets its expectation; L_k is below log p and nears it."""
    truth = LinearGaussian.example(dims=8, latents=3, noise=0.7)
    x_BD = truth.draw(rng_for(seed, "selftest/rows", range(_ROWS)))
    nats_B = truth.nats(x_BD)
    mean_BZ, covariance_ZZ = truth.posterior(x_BD)
    wide = Gaussian(mean_BZ + 0.2, (1.3 * covariance_ZZ.diagonal().sqrt()).log().expand_as(mean_BZ))
    elbo = iwae_log_prob(truth, x_BD, wide, seed, k=1, repeats=256)
    elbo_nats_B = nats_B - _kl_nats(wide, mean_BZ, covariance_ZZ)
    yield check_estimate(
        _BENCH, elbo, elbo_nats_B, unbiased=True, name="iwae k=1, against the ELBO"
    )
    yield check_estimate(_BENCH, elbo, nats_B, slack_nats=1.5, name="iwae k=1")
    for k, slack_nats in ((8, 0.3), (64, 0.05), (1024, 0.005)):
        bound = iwae_log_prob(truth, x_BD, wide, seed, k=k, repeats=4)
        yield check_estimate(_BENCH, bound, nats_B, slack_nats=slack_nats, name=f"iwae k={k}")
    one = iwae_log_prob(truth, x_BD, wide, seed, k=1024, repeats=1)
    yield check_estimate(
        _BENCH, one, nats_B, slack_nats=0.005, name="iwae k=1024, error of one evaluation"
    )
    yield _with_mixture(truth, seed)


def _with_mixture(truth: LinearGaussian, seed: int) -> EstimatorCheck:
    """The same decoder under a mixture as the prior: rows that it draws, the marginal a mixture too."""
    prior, components = MixturePrior(3, truth.weight_DZ.shape[1]).double(), range(3)
    numbers = rng_for(seed, "selftest/prior", components)
    with torch.no_grad():
        prior.mean_KZ.copy_(numbers.fold("mean").normal(3, dtype=torch.float64))
        prior.log_std_KZ.copy_(numbers.fold("std").uniform(3, dtype=torch.float64) - 1)
        prior.logit_K.copy_(numbers.fold("weight").normal(1, dtype=torch.float64)[:, 0])
        rng = rng_for(seed, "selftest/rows of a mixture", range(_ROWS))
        z_BZ = prior.draw(rng, 3, torch.float64)
        eps_BD = rng.fold("noise").normal(len(truth.mean_D), dtype=torch.float64)
        x_BD = z_BZ @ truth.weight_DZ.T + truth.mean_D + truth.noise * eps_BD
        each_KB = torch.stack([_given_component(truth, prior, k, x_BD) for k in components])
        nats_B = (each_KB + prior.logit_K.log_softmax(0)[:, None]).logsumexp(0)
        mean_BZ, covariance_ZZ = truth.posterior(x_BD)
        wide = Gaussian(mean_BZ, (1.3 * covariance_ZZ.diagonal().sqrt()).log().expand_as(mean_BZ))
        found = iwae_log_prob(truth, x_BD, wide, seed, k=1024, repeats=4, prior=prior)
    return check_estimate(
        _BENCH, found, nats_B, slack_nats=0.05, name="iwae k=1024, a mixture as prior"
    )


def _given_component(truth: LinearGaussian, prior: MixturePrior, k: int, x_BD: Tensor) -> Tensor:
    """What a component says of x, (B,)."""
    scaled_DZ = truth.weight_DZ * prior.log_std_KZ[k].exp()
    own = LinearGaussian(scaled_DZ, truth.mean_D + truth.weight_DZ @ prior.mean_KZ[k], truth.noise)
    return own.nats(x_BD)


def iwae_log_prob(
    truth: LinearGaussian,
    x_BD: Tensor,
    posterior: Gaussian,
    seed: int,
    *,
    k: int,
    repeats: int,
    prior: MixturePrior | None = None,
) -> LogProb:
    """The importance-weighted bound as the VAE family computes and labels it."""

    def log_joint(z_NZ: Tensor, row_N: Tensor) -> Tensor:
        nats_N = truth.nats_given(x_BD[row_N], z_NZ)
        if prior is None:
            return nats_N
        return nats_N - standard_normal(z_NZ).nats(z_NZ) + prior.nats(z_NZ)

    rng = rng_for(seed, f"selftest/iwae/{k}", range(len(x_BD)))
    weights_SB = iwae.importance_log_weights(posterior, log_joint, rng, k * repeats, chunk=65536)
    nats_B, stderr_B = iwae.iwae_bound(weights_SB, k)
    return LogProb(
        nats_B=nats_B,
        stderr_B=stderr_B,
        label="lower_bound" if k == 1 else "stochastic_lower_bound",
        estimator="iwae",
        of="linear Gaussian model",
        measure="lebesgue on R^D",
        budget={"k": k, "repeats": repeats},
    )


def _kl_nats(q: Gaussian, mean_BZ: Tensor, covariance_ZZ: Tensor) -> Tensor:
    """KL(q || N(mean, covariance)), (B,)."""
    p = torch.distributions.MultivariateNormal(mean_BZ, covariance_ZZ)
    scale_BZZ = torch.diag_embed(q.log_std_BZ.exp())
    own = torch.distributions.MultivariateNormal(q.mean_BZ, scale_tril=scale_BZZ)
    return torch.distributions.kl_divergence(own, p)
