"""Annealed importance sampling from both sides, on a linear generator under Gaussian noise.

Letters: B rows, D dimensions, Z latents, N chains.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genmod.distributions.gaussian import Gaussian
from genmod.interface.log_prob import LogProb, LogProbLabel
from genmod.likelihood import ais
from genmod.likelihood.ais import AISOptions
from genmod.likelihood.hmc import Target
from genmod.rng import rng_for
from genmod.selftest.check import EstimatorCheck, check_estimate
from genmod.selftest.truths import LinearGaussian

_BENCH = "linear generator"
_ROWS = 100


def checks(seed: int) -> Iterator[EstimatorCheck]:
    """Bounds lie on their sides of log p and near it: from the prior, and from a wrong encoder."""
    truth = LinearGaussian.example(dims=16, latents=4, noise=0.3)
    rng = rng_for(seed, "selftest/ais", range(_ROWS))
    z_BZ, x_BD = truth.draw_both(rng)
    nats_B = truth.nats(x_BD)
    zeros_BZ = torch.zeros_like(z_BZ)
    prior = target(truth, x_BD, Gaussian(zeros_BZ, zeros_BZ))
    for temperatures, slack_nats in ((50, 2.0), (500, 0.2)):
        options = AISOptions(temperatures=temperatures, chains=8, pilot_temperatures=50)
        found = ais.sandwich(prior, z_BZ, rng, options)
        name = f"ais T={temperatures}"
        below = _log_prob(found.lower_B, found.lower_stderr_B, "stochastic_lower_bound", options)
        yield check_estimate(_BENCH, below, nats_B, slack_nats=slack_nats, name=name)
        above = _log_prob(found.upper_B, found.upper_stderr_B, "stochastic_upper_bound", options)
        yield check_estimate(_BENCH, above, nats_B, slack_nats=slack_nats, name=f"{name} backward")
    mean_BZ, covariance_ZZ = truth.posterior(x_BD)
    std_Z = 1.3 * covariance_ZZ.diagonal().sqrt()
    wrong = target(truth, x_BD, Gaussian(mean_BZ + 0.1, std_Z.log().expand_as(mean_BZ)))
    options = AISOptions(temperatures=50, chains=8, pilot_temperatures=20)
    bound = _log_prob(*ais.lower_bound(wrong, rng, options), "stochastic_lower_bound", options)
    yield check_estimate(_BENCH, bound, nats_B, slack_nats=0.3, name="ais from an encoder")


def target(truth: LinearGaussian, x_BD: Tensor, start: Gaussian) -> Target:
    """Chains over the latents of rows, from ``start`` to their posterior."""

    def log_joint(z_NZ: Tensor, row_N: Tensor) -> Tensor:
        return truth.nats_given(x_BD[row_N], z_NZ)

    return Target(start, log_joint)


def _log_prob(
    nats_B: Tensor, stderr_B: Tensor, label: LogProbLabel, options: AISOptions
) -> LogProb:
    return LogProb(
        nats_B=nats_B,
        stderr_B=stderr_B,
        label=label,
        estimator="ais-hmc",
        of="linear Gaussian model",
        measure="lebesgue on R^D",
        budget=options.budget(),
    )
