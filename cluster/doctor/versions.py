"""Versions of this process's code and packages, without importing them."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from cluster.code_version import code_digest
from cluster.doctor.facts import Versions


def own_versions() -> Versions:
    """Versions of this process."""
    return Versions(
        genmod=f"{_version_of('genmod')} (code {code_digest()[:12]})",
        python=platform.python_version(),
        ray=_version_of("ray"),
        torch=_version_of("torch").partition("+")[0],
    )


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
