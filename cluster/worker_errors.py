"""Errors that would come again, on their way from the workers of a group to the driver.

Ray starts a group anew whenever a worker raises. So a worker with such an error leaves a note and returns;
the driver reads the note and raises the same error.
"""

from __future__ import annotations

import json
import time

from genmod import errors, storage
from genmod.config import canonical_json
from genmod.errors import GenmodError, StorageError
from genmod.world import World

BARRIER_S = 10.0
"""Ranks that have the same error leave their notes within this time of one another."""

_POLL_S = 0.2


def write_error(url: str, world: World, error: GenmodError, together_s: float = BARRIER_S) -> None:
    """Leave this rank's note, then wait for those of the others.

    Args:
        url: a folder of this launch's own.
        world: all its ranks leave notes, if they have the same error.
        error: what to say.
        together_s: how long to wait for them.

    Raises:
        GenmodError: the error itself, if other ranks have not left notes in time. They are at work and would
            wait for this rank; raising makes Ray end them. Also if the note cannot be written.
    """
    note = {"type": type(error).__name__, "message": str(error)}
    try:
        storage.create(storage.join(url, f"{world.rank:06d}.json"), canonical_json(note))
    except (OSError, StorageError):
        raise error from None  # the store is what is wrong
    deadline_s = time.monotonic() + together_s
    while len(storage.list_names(url)) < world.size:
        if time.monotonic() > deadline_s:
            raise error
        time.sleep(_POLL_S)


def read_error(url: str) -> GenmodError | None:
    """The error that a group left, that of the lowest rank; None if there is none."""
    for name in storage.list_names(url):
        note = json.loads(storage.read_bytes(storage.join(url, name)))
        kind = getattr(errors, note["type"], GenmodError)
        return kind(note["message"])
    return None
