"""Checks of annealed importance sampling: lower and upper bounds for a linear generator with Gaussian noise.

Letters: B rows, D dimensions, Z latents, N chains.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genmod.distributions.closed_form import LinearGaussian
from genmod.distributions.gaussian import Gaussian
from genmod.interface.estimator_check import EstimatorCheck, check_estimate
from genmod.interface.log_prob import LogProb, LogProbLabel
from genmod.likelihood import ais
from genmod.likelihood.ais import AISOptions
from genmod.likelihood.hmc import Target
from genmod.rng import rng_for

_DISTRIBUTION = "linear generator"
_ROWS = 100


def checks(seed: int) -> Iterator[EstimatorCheck]:
    """Check both bounds with chains from the prior, and the lower bound with chains from a wrong encoder."""
    truth = LinearGaussian.example(dims=16, latents=4, noise=0.3)
    rng = rng_for(seed, "selftest/ais", range(_ROWS))
    z_BZ, x_BD = truth.draw_joint(rng)
    nats_B = truth.nats(x_BD)
    zeros_BZ = torch.zeros_like(z_BZ)
    from_prior = target(truth, x_BD, Gaussian(zeros_BZ, zeros_BZ))
    for temperatures, slack_nats in ((50, 2.0), (500, 0.2)):
        options = AISOptions(temperatures=temperatures, chains=8, pilot_temperatures=50)
        bounds = ais.sandwich(from_prior, z_BZ, rng, options)
        lower = bounds.lower_B, bounds.lower_stderr_B
        upper = bounds.upper_B, bounds.upper_stderr_B
        name = f"ais T={temperatures}"
        log_prob = _log_prob(*lower, "stochastic_lower_bound", options)
        yield check_estimate(_DISTRIBUTION, log_prob, nats_B, slack_nats=slack_nats, name=name)
        log_prob = _log_prob(*upper, "stochastic_upper_bound", options)
        name += " backward"
        yield check_estimate(_DISTRIBUTION, log_prob, nats_B, slack_nats=slack_nats, name=name)
    mean_BZ, covariance_ZZ = truth.posterior(x_BD)
    std_Z = 1.3 * covariance_ZZ.diagonal().sqrt()
    encoder = Gaussian(mean_BZ + 0.1, std_Z.log().expand_as(mean_BZ))
    options = AISOptions(temperatures=50, chains=8, pilot_temperatures=20)
    lower = ais.lower_bound(target(truth, x_BD, encoder), rng, options)
    log_prob = _log_prob(*lower, "stochastic_lower_bound", options)
    yield check_estimate(
        _DISTRIBUTION, log_prob, nats_B, slack_nats=0.3, name="ais from an encoder"
    )


def target(truth: LinearGaussian, x_BD: Tensor, start: Gaussian) -> Target:
    """The annealing target of some rows: from ``start`` to their posterior over latents."""

    def log_joint(z_NZ: Tensor, row_N: Tensor) -> Tensor:
        return truth.log_joint(x_BD[row_N], z_NZ)

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
