"""Lower bounds on log p(x) of a VAE, and their options.

    iwae    L_k with k samples of q(z | x); L_1 is the ELBO. k is fixed, or chosen for each row.
    ais     annealed chains from q(z | x) to p(z | x): an independent estimate, for a cross-check.

k is chosen from pilot samples: the variance of their relative weights divided by the square of the target
standard error. The bound is then computed from new samples, because stopping on its own samples would bias
it. Letters: B rows, Z latents, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from genmod import units
from genmod.distributions.gaussian import Posterior
from genmod.interface.log_prob import LogProb, LogProbLabel
from genmod.interface.options import ScoreOptions
from genmod.likelihood import ais, iwae
from genmod.likelihood.ais import AISOptions
from genmod.likelihood.hmc import Target
from genmod.likelihood.iwae import LogJoint
from genmod.rng import Rng


class VAEBoundOptions(ScoreOptions):
    """Options of the bound on log p of a VAE, which always uses beta = 1."""

    estimator: Literal["iwae", "ais"] = "iwae"
    """``iwae``: importance-weighted bound. ``ais``: annealed importance sampling, which takes chains x
    temperatures x leapfrog gradients of the decoder per row."""
    k: int = Field(default=64, ge=1, le=1 << 24)
    """Importance samples within the logarithm; 1 is the ELBO. With ``target_stderr_nats`` it is the number of
    pilot samples and the smallest k."""
    repeats: int = Field(default=1, ge=1, le=1 << 20)
    """Evaluations of L_k that are averaged."""
    target_stderr_nats: float | None = Field(default=None, gt=0, le=1e6)
    """Choose k for each row, so that its standard error is about this; the column ``k`` contains it."""
    most_k: int = Field(default=8192, ge=1, le=1 << 24)
    """Largest k that may be chosen. A row that needs more has a larger standard error."""
    chunk: int = Field(default=1024, ge=1, le=1 << 24)
    """Rows per call of the decoder; it changes the memory, not the result."""
    ais: AISOptions = AISOptions(temperatures=200, radius=4.0)
    """Options of ``estimator: ais``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.estimator == "ais":
            return self
        if self.k * self.repeats < 2:
            raise ValueError("repeats: got 1 with k=1, expected at least 2 for a standard error")
        if self.target_stderr_nats is not None and (self.k < 8 or self.repeats > 1):
            raise ValueError(
                f"target_stderr_nats: got k={self.k} and repeats={self.repeats}, expected k of at least 8 "
                "(pilot samples) and repeats=1"
            )
        if self.target_stderr_nats is not None and self.most_k < self.k:
            raise ValueError(f"most_k: got {self.most_k}, expected at least k={self.k}")
        return self

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """The ELBO, a k chosen for each row, and annealed chains."""
        return (
            cls(k=1, repeats=8),
            cls(k=8, target_stderr_nats=0.5, most_k=64),
            cls(estimator="ais", ais=AISOptions.tiny()),
        )

    def probe(self) -> tuple[Self, float]:
        """A few temperatures of ``ais``; only the pilot of a chosen k, so scoring may take longer."""
        if self.estimator == "iwae":
            return self.model_copy(update={"target_stderr_nats": None}), 1.0
        short = self.ais.model_copy(update={"temperatures": 4, "pilot_temperatures": 2})
        return self.model_copy(update={"ais": short}), self.ais.moves() / short.moves()


@dataclass(frozen=True)
class VAEBound:
    """A bound on log p of B rows, with its label."""

    nats_B: Tensor
    stderr_B: Tensor
    label: LogProbLabel
    estimator: str
    budget: Mapping[str, int | float | str]
    columns: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def log_prob(self, of: str) -> LogProb:
        """The bound as a :class:`LogProb` of pixels; ``of`` names the density that it belongs to."""
        return LogProb(of=of, measure=units.COUNTS, **vars(self))


def vae_bound(
    posterior: Posterior,
    log_joint: LogJoint,
    rng: Rng,
    options: VAEBoundOptions,
    extra: Callable[[Rng], Tensor] | None = None,
) -> VAEBound:
    """The lower bound on log p of each row that ``options`` selects.

    Args:
        posterior: q(z | x), B rows.
        log_joint: log p(x, z) of the model.
        rng: B rows.
        options: the estimator and its settings.
        extra: further randomness of each sample, see
            :func:`genmod.likelihood.iwae.importance_log_weights`; only for estimator iwae.
    """
    if options.estimator == "ais":
        assert extra is None, "annealed chains need a deterministic joint density"
        nats_B, stderr_B = ais.lower_bound(
            Target(posterior.gaussian_approximation(), log_joint), rng, options.ais
        )
        return VAEBound(nats_B, stderr_B, "stochastic_lower_bound", "ais-hmc", options.ais.budget())
    if options.target_stderr_nats is not None:
        return _bound_with_chosen_k(posterior, log_joint, rng, options, extra)
    weights_SB = iwae.importance_log_weights(
        posterior,
        log_joint,
        rng.fold("posterior"),
        options.k * options.repeats,
        options.chunk,
        extra=extra,
    )
    label: LogProbLabel = "lower_bound" if options.k == 1 else "stochastic_lower_bound"
    budget = {"k": options.k, "repeats": options.repeats}
    return VAEBound(*iwae.iwae_bound(weights_SB, options.k), label, "iwae", budget)


def _bound_with_chosen_k(
    posterior: Posterior,
    log_joint: LogJoint,
    rng: Rng,
    options: VAEBoundOptions,
    extra: Callable[[Rng], Tensor] | None,
) -> VAEBound:
    """L_k with k chosen for each row: a power of two times ``options.k``."""
    assert options.target_stderr_nats is not None
    # The pilot estimates the standard error, which falls with the root of k.
    pilot_SB = iwae.importance_log_weights(
        posterior, log_joint, rng.fold("pilot"), options.k, options.chunk, extra=extra
    )
    _, pilot_stderr_B = iwae.iwae_bound(pilot_SB, options.k)
    factor_B = (pilot_stderr_B / options.target_stderr_nats).square().clamp(min=1.0)
    doublings_B = (
        factor_B.log2().ceil().clamp(max=math.floor(math.log2(options.most_k / options.k)))
    )
    k_B = options.k * 2 ** doublings_B.long()
    nats_B, stderr_B = torch.empty_like(pilot_stderr_B), torch.empty_like(pilot_stderr_B)
    # Score the rows of each k together, with new samples.
    for k in k_B.unique().tolist():
        rows_M = (k_B == k).nonzero().flatten()

        def log_joint_of_rows(
            z_NZ: Tensor, row_N: Tensor, *more: Tensor, rows_M: Tensor = rows_M
        ) -> Tensor:
            return log_joint(z_NZ, rows_M[row_N], *more)

        weights_SM = iwae.importance_log_weights(
            posterior.rows(rows_M),
            log_joint_of_rows,
            rng.fold("posterior").rows(rows_M),
            k,
            options.chunk,
            extra=extra,
        )
        nats_B[rows_M], stderr_B[rows_M] = iwae.iwae_bound(weights_SM, k)
    budget: dict[str, int | float | str] = {
        "k": "chosen",
        "k_least": options.k,
        "k_most": options.most_k,
        "target_stderr_nats": options.target_stderr_nats,
    }
    return VAEBound(nats_B, stderr_B, "stochastic_lower_bound", "iwae", budget, {"k": k_B.double()})
