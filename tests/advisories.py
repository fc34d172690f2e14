"""Known weaknesses of the pinned packages: ``python -m tests.advisories`` asks PyPI through pip-audit.

Where PyPI's service cannot be reached, it says so and succeeds, since a check of the code needs no network.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.licences import CONSTRAINTS

ACCEPTED: dict[str, str] = {}
"""Advisory -> why it does not concern genmod. Remove the line when the package has a repair."""

_TIME_LIMIT_S = 60


def report() -> dict[str, Any] | str:
    """What pip-audit says as JSON, or why it says nothing."""
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner=off", "--format=json"]
    command += ["--disable-pip", "--no-deps", "--timeout=10", f"--requirement={CONSTRAINTS}"]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_TIME_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_TIME_LIMIT_S} s"
    try:
        return json.loads(done.stdout)
    except ValueError:
        return (done.stderr.strip().splitlines() or ["pip-audit printed nothing"])[-1][:200]


def problems_of(answer: dict[str, Any]) -> tuple[list[str], int]:
    """One line for each advisory that is not accepted, and the number of packages that were looked up."""
    found: list[str] = []
    asked = [package for package in answer["dependencies"] if "skip_reason" not in package]
    for package in asked:
        for advisory in package["vulns"]:
            names = {advisory["id"], *advisory.get("aliases", ())}
            if not names & ACCEPTED.keys():
                repaired = ", ".join(advisory["fix_versions"]) or "no version"
                found.append(
                    f"{package['name']} {package['version']}: {advisory['id']}, repaired in {repaired}; "
                    "raise it in infra/constraints.txt, or accept it in tests/advisories.py with the reason"
                )
    return found, len(asked)


def main() -> int:
    """Print the advisories; 1 if there are any."""
    answer = report()
    if isinstance(answer, str):
        print(f"advisories: not checked, the service cannot be reached ({answer})")
        return 0
    found, asked = problems_of(answer)
    if not asked:
        print(
            "advisories: not checked, the service knows none of the packages; it cannot be reached from here"
        )
        return 0
    print("\n".join(found) or f"advisories: {asked} packages, none known")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
