"""Versions of this process's code and packages, without importing them."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cluster.doctor.facts import Versions

_PACKAGES = ("genmod", "cluster", "pipelines")


@cache
def code_digest() -> str:
    """SHA-256 of all Python files of this program, by path and content; the same for equal installations."""
    digest = hashlib.sha256()
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        folders = [] if spec is None else list(spec.submodule_search_locations or ())
        for folder in folders:
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(f"{name}/{path.relative_to(folder)}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


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
