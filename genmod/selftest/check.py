"""One estimator against one truth: how far off, on which side, and whether that is what its label promises.

Letters: B rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from genmod.interface.log_prob import LogProb, LogProbLabel

RequiredSide = Literal["=", "<=", ">="]
"""What an estimate must be to its truth, up to errors of simulation and of solvers."""

_REQUIRED_SIDES: dict[LogProbLabel, RequiredSide] = {
    "exact": "=",
    "exact_to_tolerance": "=",
    "estimate": "=",
    "lower_bound": "<=",
    "stochastic_lower_bound": "<=",
    "upper_bound": ">=",
    "stochastic_upper_bound": ">=",
}
"""What each label promises."""

_STANDARD_ERRORS = 3.0
"""How many standard errors chance may move an estimate."""

_MAX_FAR_SHARE = 0.1
"""Share of unbiased rows that may be farther off than that. Of Student's t with 7 degrees it is 0.02, and
0.17 if standard errors are said to be half of what they are."""


@dataclass(frozen=True)
class EstimatorCheck:
    """The verdict on one estimator on one bench. Nats are of the mean over rows, or of the worst row."""

    bench: str
    estimator: str
    label: LogProbLabel
    side: RequiredSide
    rows: int
    error_nats: float
    """Estimate less truth."""
    stderr_nats: float
    """The estimator's own, of the mean over rows."""
    tolerance_nats: float
    """What solvers and arithmetic may add on either side."""
    slack_nats: float
    """How far a bound may lie from the truth on its right side."""
    fault: str = ""
    """What is wrong, in a few words; empty if the estimator holds."""
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not self.fault

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {**vars(self), "holds": self.holds}


def check_estimate(
    bench: str,
    log_prob: LogProb,
    truth_B: Tensor,
    *,
    tolerance_nats: float = 1e-4,
    slack_nats: float = 0.0,
    unbiased: bool = False,
    in_the_mean: bool = False,
    name: str | None = None,
) -> EstimatorCheck:
    """Compare rows with their truths.

    Exact labels are asked row by row; what has a standard error, in the mean over the rows.

    Args:
        bench: its name.
        log_prob: the estimates. Their rows must be independent of each other.
        truth_B: float64.
        tolerance_nats: declared error of solver and arithmetic.
        slack_nats: how loose a bound may be.
        unbiased: ``truth_B`` is what a bound is expected to be, not log p, so it must be met on both sides.
        in_the_mean: the label's promise is about the mean over rows alone (as Gibbs' inequality is), so the
            standard error is that of the rows' scatter.
        name: of the estimator, if its own does not tell enough.
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
        bench=bench,
        estimator=name or log_prob.estimator,
        label=log_prob.label,
        side=side,
        rows=rows,
        error_nats=error,
        stderr_nats=stderr,
        tolerance_nats=tolerance_nats,
        slack_nats=slack_nats,
    )
    return replace(check, fault=_fault(check) or _dishonest(check, error_B, stderr_B))


def _fault(check: EstimatorCheck) -> str:
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


def _dishonest(check: EstimatorCheck, error_B: Tensor, stderr_B: Tensor) -> str:
    """Standard errors that are too small for the scatter of unbiased rows."""
    if check.side != "=" or check.stderr_nats == 0:
        return ""
    far_B = error_B.abs() > _STANDARD_ERRORS * stderr_B + check.tolerance_nats
    share = float(far_B.double().mean())
    if share > _MAX_FAR_SHARE:
        return f"{share:.0%} of the rows are off by more than {_STANDARD_ERRORS:g} standard errors"
    return ""
