"""Reads and extends the chain of one model: numbered objects, each created only if it does not exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from genmod import storage
from genmod.config import canonical_json
from genmod.documents import parse_document
from genmod.errors import DataError
from genmod.promotion.entry import (
    ENTRY_BYTES,
    Action,
    Author,
    Evidence,
    LedgerEntry,
    LedgerModel,
)
from genmod.promotion.history import ImpossibleEntry, Promotions

LEDGER_FILE = re.compile(r"promotion-([0-9]{6})\.json")
"""Name of an entry's object; the number has six digits."""

_REMEDY = (
    "restore the ledger from a copy, or set promote.ledger to a new folder and adopt the champion there "
    "(genmod promote --adopt --reason TEXT)"
)

_PARALLEL = 16
"""Entries that are read at the same time."""


@dataclass(frozen=True)
class LedgerChange:
    """What the next entry records."""

    action: Action
    model: LedgerModel
    """The champion after the entry."""
    reason: str
    """In words, for people."""
    author: Author
    decision: Evidence | None = None
    """Of a promotion."""


class Ledger:
    """The chain of one model.

    Args:
        url: of the ledger's folder, which has a folder for each model.
        name: of the model in the recipe.
        create: writes an object if it does not exist, and returns whether it did; that of a lease where only
            its holder may write.
    """

    def __init__(
        self, url: str, name: str, create: Callable[[str, bytes], bool] = storage.create
    ) -> None:
        self.root = storage.join(url, name)
        """URL of the folder with the entries."""
        self.name = name
        self._create = create
        self._is_writable = False

    def read(self) -> Promotions:
        """The whole history, checked entry by entry.

        Raises:
            DataError: an entry is missing, altered, not an entry, or cannot follow the one before.
        """
        names = storage.list_names(self.root)
        numbers = [int(match[1]) for name in names if (match := LEDGER_FILE.fullmatch(name))]
        for expected, number in enumerate(numbers, start=1):
            if number != expected:
                raise DataError(
                    f"{self.entry_url(expected)} is missing, but entry {number} of the promotion ledger "
                    f"exists; {_REMEDY}"
                )
        with ThreadPoolExecutor(_PARALLEL) as pool:
            entries = list(pool.map(self._read, numbers))
        promotions = Promotions(self.name)
        for entry in entries:
            try:
                promotions = promotions.after(entry)
            except ImpossibleEntry as error:
                url = self.entry_url(entry.number)
                raise DataError(
                    f"{url} does not continue the promotion ledger: {error}; {_REMEDY}"
                ) from None
        return promotions

    def append(self, promotions: Promotions, change: LedgerChange) -> Promotions | None:
        """Write the next entry.

        Args:
            promotions: the history that the entry continues, as :meth:`read` returned it.
            change: what is recorded.

        Returns:
            The history with the entry; None if another writer has continued it first.

        Raises:
            StorageError: the store cannot be written, or does not enforce create-if-absent.
        """
        last, champion = promotions.last, promotions.champion
        entry = LedgerEntry(
            number=len(promotions.entries) + 1,
            before=last.digest if last else None,
            name=self.name,
            action=change.action,
            model=change.model,
            replaces=champion.digest if champion else None,
            decision=change.decision,
            reason=change.reason,
            author=change.author,
            time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        ).sealed()
        continued = promotions.after(entry)
        if not self._is_writable:
            storage.check_writable(self.root)
            self._is_writable = True
        if not self._create(
            self.entry_url(entry.number), canonical_json(entry.model_dump(mode="json"))
        ):
            return None
        storage.fsync_dir(self.root)
        return continued

    def entry_url(self, number: int) -> str:
        """URL of an entry, which may not exist."""
        return storage.join(self.root, f"promotion-{number:06d}.json")

    def _read(self, number: int) -> LedgerEntry:
        url = self.entry_url(number)
        try:
            data = storage.read_bytes(url, ENTRY_BYTES)
        except FileNotFoundError:
            raise DataError(
                f"{url} was removed while the promotion ledger was read; {_REMEDY}"
            ) from None
        except IsADirectoryError:
            raise DataError(f"{url} is a folder, not an entry of a ledger; {_REMEDY}") from None
        what = "an entry of a promotion ledger"
        entry = parse_document(LedgerEntry, data, what, url, _REMEDY)
        if not entry.is_whole():
            raise DataError(
                f"{url} does not match its own digest: it was changed after it was written; {_REMEDY}"
            )
        return entry
