"""Log-likelihoods with their label: estimator, bound or not, measure, budget, standard error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from genmod import units
from genmod.manifest import ImageSpec

LogProbLabel = Literal[
    "exact",
    "exact_to_tolerance",
    "lower_bound",
    "stochastic_lower_bound",
    "estimate",
    "stochastic_upper_bound",
    "upper_bound",
]
"""How an estimate relates to the true log p of the object that ``of`` names.

``exact``: up to the arithmetic. ``exact_to_tolerance``: up to the tolerance in the budget. ``lower_bound``,
``upper_bound``: a bound in expectation, estimated by a mean of evaluations with the given standard error.
``stochastic_...``: a bound in expectation of the logarithm of random weights, or up to a solver's error.
``estimate``: no bound. ``genmod selftest density`` checks that every estimator deserves its label.
"""


@dataclass(frozen=True)
class LogProb:
    """Log-likelihoods of B rows, with estimator, label, measure and budget."""

    nats_B: Tensor
    """float64, summed over dimensions."""
    stderr_B: Tensor
    """float64, Monte Carlo standard error of each row's number; 0 if it is not random."""
    label: LogProbLabel
    estimator: str
    """Name with version, e.g. ``iwae``."""
    of: str
    """The object whose density it is: model, prior, sampler, dequantisation."""
    measure: str
    """``counts``, or ``lebesgue[low,high]``: a density on a declared range (:mod:`genmod.units`)."""
    budget: Mapping[str, int | float | str]
    """Settings that decide cost and tightness: ``{"k": 64}``. The same for all rows."""
    columns: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Further numbers of each row, (B,), units in the names: ``nfe``, ``solver_error_nats``."""

    def __post_init__(self) -> None:
        shape = self.nats_B.shape
        assert len(shape) == 1, shape
        for numbers_B in (self.stderr_B, *self.columns.values()):
            assert numbers_B.shape == shape, (numbers_B.shape, shape)
        assert self.nats_B.dtype == self.stderr_B.dtype == torch.float64
        assert not (self.label.startswith("exact") and bool((self.stderr_B > 0).any()))

    def bits_per_dim(self, spec: ImageSpec) -> Tensor:
        """(B,): -log2 P of each row's pixels, per dimension; of a density, see :mod:`genmod.units`."""
        bits_B = units.bits_per_dim(self.nats_B, spec.dims, self.measure, spec.levels)
        assert isinstance(bits_B, Tensor)
        return bits_B


@dataclass(frozen=True)
class Prepared:
    """Result of preparing a model for scoring, before any row is scored."""

    options: Any
    """The options, with all open values fitted."""
    metadata: Mapping[str, float]
    """Numbers for the scores' manifest and the report, units in the names."""
