"""Checks every overlay of infra/k8s, and the example of its Secrets; exits with 1 if one has a problem."""

from __future__ import annotations

import sys

from tests.kubernetes.checker import KUBERNETES, Checker
from tests.kubernetes.render import MANIFESTS, OVERLAYS, read_objects, render


def main() -> int:
    """Print the problems; 1 if there are any."""
    checker = Checker()
    found: list[str] = []
    for folder in OVERLAYS:
        try:
            lines = checker.problems(render(folder))
        except RuntimeError as error:
            lines = [str(error)]
        found += [f"{folder.name}: {line}" for line in lines]
    example = MANIFESTS / "secrets-example.yaml"
    found += [f"{example.name}: {x}" for x in checker.problems(read_objects(example.read_text()))]
    for kind in sorted(checker.not_validated):
        print(f"kubernetes: not validated against its definition: {kind}")
    rules = checker.rules
    summary = (
        f"kubernetes: {len(OVERLAYS)} overlays, {checker.objects} objects, {checker.pods} pods; schemas of "
        f"Kubernetes {KUBERNETES}; {rules.applied} CEL rules applied, {rules.skipped} about changes skipped"
    )
    print("\n".join(found) or summary)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
