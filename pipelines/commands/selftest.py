"""``genmod selftest``: check the estimators of log p, or the gate, against cases whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from genmod.evaluation.policy import PromoteConfig
from genmod.interface.estimator_check import EstimatorCheck
from genmod.selftest.density import all_checks, run_checks
from genmod.selftest.gate import GateCheck, run_gate
from genmod.terminal import print_line


class Check(Protocol):
    """The result of one check."""

    @property
    def passed(self) -> bool:
        """Whether the result is as it must be."""
        ...

    @property
    def seconds(self) -> float:
        """How long it took."""
        ...

    def as_json(self) -> dict[str, Any]:
        """The check as JSON values."""
        ...


SUBJECTS: dict[str, Callable[[], Iterator[Check]]] = {
    "density": lambda: run_checks(all_checks()),
    "gate": lambda: run_gate(PromoteConfig()),
}
"""What can be checked: the argument of ``genmod selftest``."""


def selftest(subject: str, policy: PromoteConfig | None = None) -> dict[str, Any]:
    """Run all checks of a subject, print one line per check on stderr, return the result for ``--json``.

    Args:
        subject: a key of :data:`SUBJECTS`.
        policy: what the gate is checked with, instead of the default rules.
    """
    checks: list[Check] = []
    for check in run_gate(policy) if policy is not None else SUBJECTS[subject]():
        checks.append(check)
        print_line(line(check))
    failed = sum(not check.passed for check in checks)
    seconds = sum(check.seconds for check in checks)
    outcome = (
        f"{failed} of {len(checks)} checks failed" if failed else f"{len(checks)} checks passed"
    )
    print_line(f"{outcome}, {seconds:.0f} s")
    return {
        "stage": "selftest",
        "status": "failed" if failed else "done",
        "checks": [check.as_json() for check in checks],
        "exit_code": 1 if failed else 0,
    }


def line(check: Check) -> str:
    """One line of a check: its result, and what it is about."""
    result = "ok  " if check.passed else "FAIL"
    if isinstance(check, EstimatorCheck):
        return f"{result} {_of_estimator(check)}"
    if isinstance(check, GateCheck):
        return f"{result} {_of_gate(check)}"
    raise TypeError(type(check).__name__)


def _of_estimator(check: EstimatorCheck) -> str:
    """Distribution, estimator, label, error, standard error, required side, problem."""
    side = {"=": "equal to", "<=": "at most", ">=": "at least"}[check.side]
    return (
        f"{check.distribution}: {check.estimator} [{check.label}], "
        f"{check.rows} rows: error {check.error_nats:+.4f} nats, standard error {check.stderr_nats:.4f}, "
        f"expected {side} the true log p" + (f": {check.problem}" if check.problem else "")
    )


def _of_gate(check: GateCheck) -> str:
    """Candidate, decision, reasons; of a failed check also what was expected."""
    outcome = "promoted" if check.decision.promote else "not promoted"
    text = f"{check.case.candidate}: {outcome}: {'; '.join(check.decision.reasons)}"
    if check.passed:
        return text
    against = f" for {' or '.join(check.case.against)}" if check.case.against else ""
    return f"{text}; it must be {check.case.expected}{against}"
