"""Strict results have one numeric class: that of the first worker of a folder, with which others compare."""

from __future__ import annotations

from collections.abc import Sequence

from genmod import storage
from genmod.errors import ConfigError, sanitize

NUMERICS_FILE = "numerics.txt"
"""File of a folder in progress with the numeric class of its first worker."""

_MAX_BYTES = 1_000


def check_same_class(root: str, own: str, shared: Sequence[str] = (), *, section: str) -> None:
    """Check that a worker may write results of a strict job; the first one decides.

    Args:
        root: URL of the folder.
        own: numeric class of the worker.
        shared: numeric classes of results that the folder shares.
        section: of the recipe, ``sample`` or ``score``.

    Raises:
        ConfigError: the results are of another class.
    """
    url = storage.join(root, NUMERICS_FILE)
    storage.create(url, own.encode())
    first = storage.read_bytes(url, _MAX_BYTES).decode("utf-8", "replace")
    other = next((name for name in (first, *shared) if name != own), None)
    if other is not None:
        raise ConfigError(
            f"{root} has results of numeric class {sanitize(other[:200])!r}, this worker is of "
            f"{sanitize(own[:200])!r}, which may round differently; run on nodes of one kind "
            f"(cluster.labels), or set {section}.numerics to portable or any, with another {section}.output"
        )
