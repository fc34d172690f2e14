"""Errors that a restart would repeat, on their way from the workers of a group to the driver.

Ray restarts a group whenever one of its workers raises. So a worker with such an error writes it to a file
and returns; the driver reads the file and raises the same error.
"""

from __future__ import annotations

import json
import time

from genmod import errors, storage
from genmod.config import canonical_json
from genmod.errors import GenmodError, StorageError
from genmod.world import World

ALL_RANKS_S = 10.0
"""Ranks with the same error write it within this time of one another, in seconds."""

_POLL_S = 0.2


def write_error(url: str, world: World, error: GenmodError, wait_s: float = ALL_RANKS_S) -> None:
    """Write this rank's error, then wait for the errors of the other ranks.

    Args:
        url: a folder that only this launch uses.
        world: all its ranks call this function, if they have the same error.
        error: for the driver.
        wait_s: how long to wait for the other ranks, in seconds.

    Raises:
        GenmodError: the error itself, if other ranks have written no error in time. They are still working
            and would wait for this rank; the exception makes Ray end them. Also if the error cannot be
            written.
    """
    content = {"type": type(error).__name__, "message": str(error)}
    try:
        storage.create(storage.join(url, f"{world.rank:06d}.json"), canonical_json(content))
    except (OSError, StorageError):
        raise error from None  # the storage is the cause
    deadline_s = time.monotonic() + wait_s
    while len(storage.list_names(url)) < world.size:
        if time.monotonic() > deadline_s:
            raise error
        time.sleep(_POLL_S)


def read_error(url: str) -> GenmodError | None:
    """The error that the lowest rank of a group has written, or None."""
    for name in storage.list_names(url):
        content = json.loads(storage.read_bytes(storage.join(url, name)))
        kind = getattr(errors, content["type"], GenmodError)
        return kind(content["message"])
    return None
