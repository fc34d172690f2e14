"""The log of a lease: numbered objects, created only if absent and never removed, and the heartbeats."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from genmod import storage
from genmod.config import Config, canonical_json
from genmod.documents import parse_document
from genmod.errors import DataError
from genmod.lease.holder import LeaseHolder
from genmod.storage import RelativePath

MAX_LEASE_S = 86_400.0
"""The longest time of a lease, in seconds: a forged entry delays others by no more."""

_LAST = 99_999_999
_TEXT_CHARS = 16 << 20
_ENTRY_BYTES = 8 * _TEXT_CHARS
_HEARTBEAT_BYTES = 8192
_PROGRESS_CHARS = 1000


class LeaseEntry(Config):
    """One entry of the log."""

    kind: Literal["acquired", "published", "released"]
    number: int = Field(ge=1, le=_LAST)
    """Fencing number of the holder who wrote the entry: the position of its entry ``acquired``."""
    holder: LeaseHolder
    lease_s: float = Field(gt=0, le=MAX_LEASE_S)
    """The holder renews the lease within this time."""
    path: RelativePath | None = None
    """Of the published file, below the root."""
    text: str = Field(default="", max_length=_TEXT_CHARS)
    """The published file's content."""


class LeaseHeartbeat(Config):
    """What a holder says about itself while it works."""

    beat: int = Field(ge=0, le=1 << 62)
    progress: str = Field(max_length=4 * _PROGRESS_CHARS)


@dataclass(frozen=True)
class LeaseLog:
    """The log of one lease.

    Args:
        folder: URL of the lease's folder.
    """

    folder: str

    def newest(self) -> tuple[int, LeaseEntry | None]:
        """Position and content of the last entry; 0 and None for a new log.

        Raises:
            DataError: it is not an entry, or there can be no further one.
        """
        names = storage.list_names(storage.join(self.folder, "log"))
        positions = [int(match[1]) for n in names if (match := re.fullmatch(r"(\d{8})\.json", n))]
        if not positions:
            return 0, None
        position = max(positions)
        if position >= _LAST:
            raise DataError(
                f"{self._url(position)}: a log of a lease has no entry of that number; remove it"
            )
        return position, self.read(position)

    def read(self, position: int) -> LeaseEntry:
        """The entry at a position. FileNotFoundError if there is none; DataError if it is invalid."""
        url = self._url(position)
        data = storage.read_bytes(url, _ENTRY_BYTES)
        hint = "remove it if no process works there, then run the same command again"
        entry = parse_document(LeaseEntry, data, "an entry of a lease's log", url, hint)
        if entry.number > position or (entry.kind == "published") != (entry.path is not None):
            raise DataError(f"{url} is not an entry of a lease's log (number or path); {hint}")
        return entry

    def append(self, position: int, entry: LeaseEntry) -> bool:
        """Write the entry of a position. False if another process was first."""
        return storage.create(self._url(position), canonical_json(entry.model_dump(mode="json")))

    def is_taken(self, position: int) -> bool:
        """Whether a position has an entry."""
        return storage.exists(self._url(position))

    def heartbeat(self, number: int) -> bytes:
        """The heartbeat of a holder, as it was written; empty if there is none."""
        try:
            return storage.read_bytes(self._heartbeat_url(number), _HEARTBEAT_BYTES)
        except FileNotFoundError:
            return b""

    def write_heartbeat(self, number: int, beat: int, progress: str) -> None:
        """Show that the holder with this number works, and how far it is."""
        value = LeaseHeartbeat(beat=beat, progress=progress[:_PROGRESS_CHARS])
        storage.write_bytes(self._heartbeat_url(number), canonical_json(value.model_dump()))

    def progress(self, number: int) -> str:
        """What the holder with this number last said about its progress; empty if nothing readable."""
        url = self._heartbeat_url(number)
        try:
            data = self.heartbeat(number)
            return (
                parse_document(LeaseHeartbeat, data, "a heartbeat", url, "").progress
                if data
                else ""
            )
        except DataError:
            return ""

    def _url(self, position: int) -> str:
        return storage.join(self.folder, "log", f"{position:08d}.json")

    def _heartbeat_url(self, number: int) -> str:
        return storage.join(self.folder, "heartbeats", f"{number:08d}.json")
