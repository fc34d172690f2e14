"""``genmod selftest density``: check every estimator of log p against densities in closed form."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from genmod.interface.estimator_check import EstimatorCheck
from genmod.selftest.density import all_checks, run_checks

SUBJECTS: dict[str, Callable[[], Iterator[EstimatorCheck]]] = {
    "density": lambda: run_checks(all_checks())
}
"""What can be checked: the argument of ``genmod selftest``."""


def selftest(subject: str) -> dict[str, Any]:
    """Run all checks of a subject, print one line per check on stderr, return the result for ``--json``."""
    checks: list[EstimatorCheck] = []
    for check in SUBJECTS[subject]():
        checks.append(check)
        print(line(check), file=sys.stderr, flush=True)
    failed = sum(not check.passed for check in checks)
    seconds = sum(check.seconds for check in checks)
    outcome = (
        f"{failed} of {len(checks)} checks failed" if failed else f"{len(checks)} checks passed"
    )
    print(f"{outcome}, {seconds:.0f} s", file=sys.stderr)
    return {
        "stage": "selftest",
        "status": "failed" if failed else "done",
        "checks": [check.as_json() for check in checks],
        "exit_code": 1 if failed else 0,
    }


def line(check: EstimatorCheck) -> str:
    """One line: result, distribution, estimator, label, error, standard error, required side, problem."""
    side = {"=": "equal to", "<=": "at most", ">=": "at least"}[check.side]
    return (
        f"{'ok  ' if check.passed else 'FAIL'} {check.distribution}: {check.estimator} [{check.label}], "
        f"{check.rows} rows: error {check.error_nats:+.4f} nats, standard error {check.stderr_nats:.4f}, "
        f"expected {side} the true log p" + (f": {check.problem}" if check.problem else "")
    )
