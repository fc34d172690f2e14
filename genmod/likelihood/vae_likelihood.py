"""Bounds on log p(x) of a decoder with an encoder: options, and what does as they say.

    iwae    L_k of k samples of q(z | x); L_1 is the ELBO. k is given, or chosen row by row.
    ais     annealed chains from q(z | x) to p(z | x): another way to the same number, for a cross-check.

k is chosen by pilot samples with randomness of their own: the variance of their relative weights over the
square of the wanted standard error. The bound is then made of fresh samples, for one that stops when its own
samples look good would no longer be a bound. Letters: B rows, Z latents, N samples.
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
    """How to bound log p, always with beta = 1."""

    estimator: Literal["iwae", "ais"] = "iwae"
    """``ais`` costs chains x temperatures x leapfrog decoder gradients a row."""
    k: int = Field(default=64, ge=1)
    """Importance samples within the logarithm; 1 is the ELBO. With a target, of the pilot, and the least."""
    repeats: int = Field(default=1, ge=1)
    """Evaluations of L_k that are averaged."""
    target_stderr_nats: float | None = Field(default=None, gt=0)
    """Choose k for each row, so that its standard error is about this; the column ``k`` says which."""
    most_k: int = Field(default=8192, ge=1)
    """The largest k that may be chosen. A row that needs more says so by its standard error."""
    chunk: int = Field(default=1024, ge=1)
    """Rows of one decoder call: memory, not the result."""
    ais: AISOptions = AISOptions(temperatures=200, radius=4.0)
    """What ``ais`` spends on a row."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.estimator == "ais":
            return self
        if self.k * self.repeats < 2:
            raise ValueError("k = 1 needs repeats of at least 2, else there is no standard error")
        if self.target_stderr_nats is not None and (self.k < 8 or self.repeats > 1):
            raise ValueError(
                "target_stderr_nats needs a k of at least 8 for its pilot, and repeats 1"
            )
        if self.target_stderr_nats is not None and self.most_k < self.k:
            raise ValueError(f"most_k ({self.most_k}) is less than k ({self.k})")
        return self

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """The ELBO, a k of each row's own, and chains."""
        return (
            cls(k=1, repeats=8),
            cls(k=8, target_stderr_nats=0.5, most_k=64),
            cls(estimator="ais", ais=AISOptions.tiny()),
        )

    def probe(self) -> tuple[Self, float]:
        """Of ais a few temperatures; of a chosen k the pilot alone, so that it may take longer."""
        if self.estimator == "iwae":
            return self.model_copy(update={"target_stderr_nats": None}), 1.0
        few = self.ais.model_copy(update={"temperatures": 4, "pilot_temperatures": 2})
        return self.model_copy(update={"ais": few}), self.ais.moves() / few.moves()


@dataclass(frozen=True)
class VAEBound:
    """A bound on log p of B rows, with what it is."""

    nats_B: Tensor
    stderr_B: Tensor
    label: LogProbLabel
    estimator: str
    budget: Mapping[str, int | float | str]
    columns: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def log_prob(self, of: str) -> LogProb:
        """As one of the pixels of which model object."""
        return LogProb(of=of, measure=units.COUNTS, **vars(self))


def vae_bound(
    posterior: Posterior,
    log_joint: LogJoint,
    rng: Rng,
    options: VAEBoundOptions,
    extra: Callable[[Rng], Tensor] | None = None,
) -> VAEBound:
    """What ``options`` says, of every row.

    Args:
        posterior: q(z | x), B rows.
        log_joint: of the model.
        rng: B rows.
        options: the options.
        extra: further randomness of each sample, see
            :func:`genmod.likelihood.iwae.importance_log_weights`; only for estimator iwae.
    """
    if options.estimator == "ais":
        assert extra is None, "chains need a joint density that is not random"
        nats_B, stderr_B = ais.lower_bound(
            Target(posterior.gaussian_approximation(), log_joint), rng, options.ais
        )
        return VAEBound(nats_B, stderr_B, "stochastic_lower_bound", "ais-hmc", options.ais.budget())
    if options.target_stderr_nats is not None:
        return _chosen(posterior, log_joint, rng, options, extra)
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


def _chosen(
    posterior: Posterior,
    log_joint: LogJoint,
    rng: Rng,
    options: VAEBoundOptions,
    extra: Callable[[Rng], Tensor] | None,
) -> VAEBound:
    """L_k with a k for each row, a power of two times the least."""
    assert options.target_stderr_nats is not None
    pilot_SB = iwae.importance_log_weights(
        posterior, log_joint, rng.fold("pilot"), options.k, options.chunk, extra=extra
    )
    _, pilot_stderr_B = iwae.iwae_bound(pilot_SB, options.k)
    # The standard error falls with the root of k: so many times k for the one that is wanted.
    times_B = (pilot_stderr_B / options.target_stderr_nats).square().clamp(min=1.0)
    doublings_B = times_B.log2().ceil().clamp(max=math.floor(math.log2(options.most_k / options.k)))
    k_B = options.k * 2 ** doublings_B.long()
    nats_B, stderr_B = torch.empty_like(pilot_stderr_B), torch.empty_like(pilot_stderr_B)
    for k in k_B.unique().tolist():
        which_M = (k_B == k).nonzero().flatten()

        def of_these(
            z_NZ: Tensor, row_N: Tensor, *more: Tensor, which_M: Tensor = which_M
        ) -> Tensor:
            return log_joint(z_NZ, which_M[row_N], *more)

        weights_SM = iwae.importance_log_weights(
            posterior.rows(which_M),
            of_these,
            rng.fold("posterior").rows(which_M),
            k,
            options.chunk,
            extra=extra,
        )
        nats_B[which_M], stderr_B[which_M] = iwae.iwae_bound(weights_SM, k)
    budget: dict[str, int | float | str] = {
        "k": "chosen",
        "k_least": options.k,
        "k_most": options.most_k,
        "target_stderr_nats": options.target_stderr_nats,
    }
    return VAEBound(nats_B, stderr_B, "stochastic_lower_bound", "iwae", budget, {"k": k_B.double()})
