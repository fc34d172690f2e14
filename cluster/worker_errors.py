"""Errors that a restart would repeat, on their way from the workers of a group to the driver.

Ray restarts a group whenever one of its workers raises. So a worker with such an error writes it to a file, a
*note*, and returns; the driver reads the note and raises the same error. Notes lie in the root's store, so
others may have written them: they name one of a fixed table of errors, and what is no note is skipped.
"""

from __future__ import annotations

import logging
import re
import time

from pydantic import Field

from genmod import storage
from genmod.budget import ReadBudget
from genmod.config import Config, canonical_json
from genmod.documents import parse_json, validate
from genmod.errors import (
    ConfigError,
    DataError,
    GenmodError,
    StorageError,
    StoreUnavailable,
    TrainingCollapsed,
    TrainingDiverged,
    UnreadableRow,
    Unscorable,
    sanitize,
)
from genmod.world import World

ALL_RANKS_S = 10.0
"""Ranks with the same error write it within this time of one another, in seconds."""

ERROR_KINDS: dict[str, type[GenmodError]] = {
    kind.__name__: kind
    for kind in (
        GenmodError,
        ConfigError,
        DataError,
        StorageError,
        StoreUnavailable,
        TrainingCollapsed,
        TrainingDiverged,
        UnreadableRow,
        Unscorable,
    )
}
"""The errors that a note can name."""

_POLL_S = 0.2

_MESSAGE_CHARS = 4000
"""Characters of a message; longer ones are cut."""

_BUDGET = ReadBudget(document_bytes=32 << 10, json_values=16, nesting=2)
"""Limits of a note."""

_NAME = re.compile(r"[0-9]{6}\.json")

logger = logging.getLogger(__name__)


class ErrorNote(Config):
    """The error of one rank."""

    type: str
    """Name of its class, one of :data:`ERROR_KINDS`."""
    message: str = Field(max_length=_MESSAGE_CHARS)
    """One line."""


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
    kind = next(c.__name__ for c in type(error).__mro__ if ERROR_KINDS.get(c.__name__) is c)
    note = ErrorNote(type=kind, message=sanitize(str(error))[:_MESSAGE_CHARS])
    try:
        storage.create(
            storage.join(url, f"{world.rank:06d}.json"), canonical_json(note.model_dump())
        )
    except (OSError, StorageError):
        raise error from None  # the storage is the cause
    deadline_s = time.monotonic() + wait_s
    while sum(map(_is_note, storage.list_names(url))) < world.size:
        if time.monotonic() > deadline_s:
            raise error
        time.sleep(_POLL_S)


def read_error(url: str) -> GenmodError | None:
    """The error that the lowest rank of a group has written, or None. Files that are no notes are skipped."""
    for name in storage.list_names(url):
        try:
            note = _read(url, name)
        except DataError as error:
            logger.warning("%s", error)
            continue
        return ERROR_KINDS[note.type](note.message)
    return None


def _is_note(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def _read(url: str, name: str) -> ErrorNote:
    """A note. DataError for anything else."""
    where, remedy = f"the worker's error {sanitize(storage.join(url, name))[:300]}", "it is skipped"
    if not _is_note(name):
        raise DataError(f"{where} has an unknown name; {remedy}")
    try:
        (data,) = storage.read_ranges(storage.join(url, name), [0], [_BUDGET.document_bytes + 1])
    except StoreUnavailable:
        raise
    except (OSError, StorageError) as error:
        raise DataError(f"{where} cannot be read ({type(error).__name__}); {remedy}") from None
    content = parse_json(data, where, remedy, _BUDGET)
    note = validate(ErrorNote, content, "the error of a worker", where, remedy)
    if note.type not in ERROR_KINDS:
        raise DataError(f"{where} has the unknown type {sanitize(note.type)[:80]}; {remedy}")
    return ErrorNote(type=note.type, message=sanitize(note.message))
