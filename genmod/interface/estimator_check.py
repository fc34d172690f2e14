"""Checks an estimator of log p against a known density: the error, its sign, and the stated standard error.

Letters: B rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from genmod.interface.log_prob import LogProb, LogProbLabel

RequiredSide = Literal["=", "<=", ">="]
"""How an estimate must relate to the true log p, up to sampling noise and solver error."""

_REQUIRED_SIDES: dict[LogProbLabel, RequiredSide] = {
    "exact": "=",
    "exact_to_tolerance": "=",
    "estimate": "=",
    "lower_bound": "<=",
    "stochastic_lower_bound": "<=",
    "upper_bound": ">=",
    "stochastic_upper_bound": ">=",
}
"""The relation that each label promises."""

_STANDARD_ERRORS = 3.0
"""Width of the accepted interval, in standard errors."""

_MAX_FAR_SHARE = 0.1
"""Largest accepted share of unbiased rows outside that interval. With Student's t and 7 degrees of freedom
the share is 0.02; it is 0.17 if the stated standard errors are half of the true ones."""


@dataclass(frozen=True)
class EstimatorCheck:
    """The result of one check. Errors are of the mean over rows; of exact labels, of the worst row."""

    distribution: str
    """Name of the known distribution."""
    estimator: str
    label: LogProbLabel
    side: RequiredSide
    rows: int
    error_nats: float
    """Estimate minus true log p."""
    stderr_nats: float
    """Standard error of the mean over rows, as the estimator states it."""
    tolerance_nats: float
    """Accepted error of solver and arithmetic, on both sides."""
    slack_nats: float
    """Accepted distance of a bound from the true log p, on its correct side."""
    problem: str = ""
    """Why the check failed; empty if it passed."""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether no problem was found."""
        return not self.problem

    def as_json(self) -> dict[str, Any]:
        """All fields and ``passed``, for ``--json``."""
        return {**vars(self), "passed": self.passed}


def check_estimate(
    distribution: str,
    log_prob: LogProb,
    truth_B: Tensor,
    *,
    tolerance_nats: float = 1e-4,
    slack_nats: float = 0.0,
    unbiased: bool = False,
    in_the_mean: bool = False,
    name: str | None = None,
) -> EstimatorCheck:
    """Compare estimates with true log densities.

    Exact labels are checked row by row; estimates with a standard error in the mean over rows.

    Args:
        distribution: name of the known distribution.
        log_prob: the estimates. Their rows must be independent of each other.
        truth_B: the true log densities, (B,) float64 in nats.
        tolerance_nats: accepted error of solver and arithmetic.
        slack_nats: accepted looseness of a bound.
        unbiased: ``truth_B`` is the expectation of the bound instead of log p, so both sides are checked.
        in_the_mean: the label holds only for the mean over rows (as Gibbs' inequality does), so the standard
            error comes from the scatter of the rows.
        name: shown instead of the estimator's name.
    """
    error_B = log_prob.nats_B - truth_B
    side: RequiredSide = "=" if unbiased else _REQUIRED_SIDES[log_prob.label]
    rows = len(truth_B)
    stderr_B = error_B.std().expand(rows) if in_the_mean else log_prob.stderr_B
    stderr = float(stderr_B.square().sum().sqrt()) / rows
    error = float(error_B.mean())
    if log_prob.label.startswith("exact") and side == "=" and not in_the_mean:
        error = float(error_B[error_B.abs().argmax()])
    check = EstimatorCheck(
        distribution=distribution,
        estimator=name or log_prob.estimator,
        label=log_prob.label,
        side=side,
        rows=rows,
        error_nats=error,
        stderr_nats=stderr,
        tolerance_nats=tolerance_nats,
        slack_nats=slack_nats,
    )
    problem = _error_problem(check) or _stderr_problem(check, error_B, stderr_B)
    return replace(check, problem=problem)


def _error_problem(check: EstimatorCheck) -> str:
    """Why the mean error is not acceptable; empty if it is."""
    error, chance = check.error_nats, _STANDARD_ERRORS * check.stderr_nats + check.tolerance_nats
    if not math.isfinite(error) or not math.isfinite(check.stderr_nats):
        return "not a finite number"
    if check.side == "=":
        return f"off by more than {chance:.3g}" if abs(error) > chance else ""
    above = error if check.side == "<=" else -error
    if above > chance:
        return f"on the wrong side by more than {chance:.3g}"
    if above < -check.slack_nats - chance:
        return f"looser than {check.slack_nats + chance:.3g}"
    return ""


def _stderr_problem(check: EstimatorCheck, error_B: Tensor, stderr_B: Tensor) -> str:
    """Whether the stated standard errors are too small for the scatter of unbiased rows."""
    if check.side != "=" or check.stderr_nats == 0:
        return ""
    far_B = error_B.abs() > _STANDARD_ERRORS * stderr_B + check.tolerance_nats
    share = float(far_B.double().mean())
    if share > _MAX_FAR_SHARE:
        return f"{share:.0%} of the rows are off by more than {_STANDARD_ERRORS:g} standard errors"
    return ""
