"""``genmod selftest density``: every estimator of log p(x) against truths in closed form."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from genmod.selftest import density
from genmod.selftest.check import EstimatorCheck

SUBJECTS: dict[str, Callable[[], Iterator[EstimatorCheck]]] = {"density": density.run_benches}


def selftest(subject: str) -> dict[str, Any]:
    """Print a line on stderr for each check as it is done; the result, with every check, for ``--json``."""
    checks: list[EstimatorCheck] = []
    for check in SUBJECTS[subject]():
        checks.append(check)
        print(line(check), file=sys.stderr, flush=True)
    failed = sum(not check.holds for check in checks)
    seconds = sum(check.seconds for check in checks)
    what = f"{failed} of {len(checks)} checks failed" if failed else f"{len(checks)} checks hold"
    print(f"{what}, {seconds:.0f} s", file=sys.stderr)
    return {
        "stage": "selftest",
        "status": "failed" if failed else "done",
        "checks": [check.as_json() for check in checks],
        "exit_code": 1 if failed else 0,
    }


def line(check: EstimatorCheck) -> str:
    """One check: estimator, label, error, standard error, the side it must be on, the verdict."""
    side = {"=": "at", "<=": "below", ">=": "above"}[check.side]
    return (
        f"{'ok  ' if check.holds else 'FAIL'} {check.bench}: {check.estimator} [{check.label}], "
        f"{check.rows} rows: {check.error_nats:+.4f} nats, standard error {check.stderr_nats:.4f}, "
        f"to be {side} the truth" + (f": {check.fault}" if check.fault else "")
    )
