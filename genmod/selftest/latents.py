"""Checks of the importance-weighted bound, on latent variable models with known marginals.

Letters: B rows, D dimensions, Z latents, N rows, K components.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genmod.distributions.closed_form import LinearGaussian
from genmod.distributions.gaussian import Gaussian, standard_normal
from genmod.distributions.prior import MixturePrior
from genmod.interface.estimator_check import EstimatorCheck, check_estimate
from genmod.interface.log_prob import LogProb
from genmod.likelihood import iwae
from genmod.rng import rng_for

_DISTRIBUTION = "linear-gaussian latents"
_ROWS = 200


def checks(seed: int) -> Iterator[EstimatorCheck]:
    """Check that the ELBO equals its expectation, and that L_k is below log p and converges to it."""
    truth = LinearGaussian.example(dims=8, latents=3, noise=0.7)
    x_BD = truth.draw(rng_for(seed, "selftest/rows", range(_ROWS)))
    nats_B = truth.nats(x_BD)
    mean_BZ, covariance_ZZ = truth.posterior(x_BD)
    # A posterior that is shifted and too wide, so that the bounds are loose by a known amount.
    wide = Gaussian(mean_BZ + 0.2, (1.3 * covariance_ZZ.diagonal().sqrt()).log().expand_as(mean_BZ))
    elbo = iwae_log_prob(truth, x_BD, wide, seed, k=1, repeats=256)
    elbo_nats_B = nats_B - _kl_nats(wide, mean_BZ, covariance_ZZ)
    yield check_estimate(
        _DISTRIBUTION, elbo, elbo_nats_B, unbiased=True, name="iwae k=1, against the ELBO"
    )
    yield check_estimate(_DISTRIBUTION, elbo, nats_B, slack_nats=1.5, name="iwae k=1")
    for k, slack_nats in ((8, 0.3), (64, 0.05), (1024, 0.005)):
        bound = iwae_log_prob(truth, x_BD, wide, seed, k=k, repeats=4)
        yield check_estimate(
            _DISTRIBUTION, bound, nats_B, slack_nats=slack_nats, name=f"iwae k={k}"
        )
    single = iwae_log_prob(truth, x_BD, wide, seed, k=1024, repeats=1)
    name = "iwae k=1024, error of one evaluation"
    yield check_estimate(_DISTRIBUTION, single, nats_B, slack_nats=0.005, name=name)
    yield _mixture_prior_check(truth, seed)


def _mixture_prior_check(truth: LinearGaussian, seed: int) -> EstimatorCheck:
    """The same decoder with a mixture as prior: rows drawn from it, whose marginal is a mixture too."""
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
        nats_KB = torch.stack([_component_nats(truth, prior, k, x_BD) for k in components])
        nats_B = (nats_KB + prior.logit_K.log_softmax(0)[:, None]).logsumexp(0)
        mean_BZ, covariance_ZZ = truth.posterior(x_BD)
        wide = Gaussian(mean_BZ, (1.3 * covariance_ZZ.diagonal().sqrt()).log().expand_as(mean_BZ))
        bound = iwae_log_prob(truth, x_BD, wide, seed, k=1024, repeats=4, prior=prior)
    name = "iwae k=1024, a mixture as prior"
    return check_estimate(_DISTRIBUTION, bound, nats_B, slack_nats=0.05, name=name)


def _component_nats(truth: LinearGaussian, prior: MixturePrior, k: int, x_BD: Tensor) -> Tensor:
    """Log density of x given component k of the prior, (B,) in nats."""
    scaled_DZ = truth.weight_DZ * prior.log_std_KZ[k].exp()
    mean_D = truth.mean_D + truth.weight_DZ @ prior.mean_KZ[k]
    return LinearGaussian(scaled_DZ, mean_D, truth.noise).nats(x_BD)


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
    """The importance-weighted bound of rows, labelled as in a model's score table.

    Args:
        truth: the decoder.
        x_BD: rows to score.
        posterior: q(z | x), the proposal.
        seed: of the samples.
        k: samples within the logarithm.
        repeats: evaluations that are averaged.
        prior: p(z); None for N(0, 1).
    """

    def log_joint(z_NZ: Tensor, row_N: Tensor) -> Tensor:
        nats_N = truth.log_joint(x_BD[row_N], z_NZ)
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
    """KL(q || N(mean, covariance)), (B,) in nats."""
    p = torch.distributions.MultivariateNormal(mean_BZ, covariance_ZZ)
    scale_BZZ = torch.diag_embed(q.log_std_BZ.exp())
    q_normal = torch.distributions.MultivariateNormal(q.mean_BZ, scale_tril=scale_BZZ)
    return torch.distributions.kl_divergence(q_normal, p)
