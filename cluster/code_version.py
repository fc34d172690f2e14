"""Which code this program is: commit and digest, without importing it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from functools import cache
from pathlib import Path

_PACKAGES = ("genmod", "cluster", "pipelines")

_COMMIT = "GENMOD_COMMIT"
"""Variable that images set."""


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


def code_version() -> str:
    """Commit, where an image names it, and digest of the code, in words."""
    commit = os.environ.get(_COMMIT)
    return f"{f'commit {commit}, ' if commit else ''}code sha256:{code_digest()}"
