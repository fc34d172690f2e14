"""Receipts: which pieces of a stage's work are done. One small object each, created only if absent.

A piece's data is written first, then its receipt; of several makers of one piece exactly one wins, and what
the winner wrote counts. The work that is left is every piece without a receipt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, Self, TypeVar

from pydantic import ValidationError

from genmod import storage
from genmod.config import canonical_json
from genmod.errors import DataError

FOLDER = "receipts"
"""Below a stage's root."""

READERS = 16
"""Receipts that are fetched at the same time."""


class Receipt(Protocol):
    """A Config with the fingerprint of the work that it belongs to."""

    @property
    def fingerprint(self) -> str:
        """Of the stage's work."""
        ...

    def model_dump(self, *, mode: str) -> dict[str, object]:
        """As JSON values."""
        ...

    @classmethod
    def model_validate(cls, obj: object) -> Self:
        """From JSON values."""
        ...


ReceiptT = TypeVar("ReceiptT", bound=Receipt)


def commit(root: str, name: str, receipt: ReceiptT) -> ReceiptT:
    """Say that a piece is done. Returns the receipt that counts: this one, or that of an earlier maker."""
    url = _url(root, name)
    if storage.create(url, canonical_json(receipt.model_dump(mode="json"))):
        return receipt
    return _read(type(receipt), url, receipt.fingerprint)


def load_receipt(schema: type[ReceiptT], root: str, name: str, fingerprint: str) -> ReceiptT | None:
    """A piece's receipt, None if it is still to do."""
    try:
        return _read(schema, _url(root, name), fingerprint)
    except FileNotFoundError:
        return None


def load_receipts(
    schema: type[ReceiptT], root: str, names: Sequence[str], fingerprint: str
) -> dict[str, ReceiptT]:
    """The receipts that are there of those that are asked for, in the order of ``names``.

    Raises:
        DataError: one is broken or belongs to other work.
    """
    there = set(storage.list_names(storage.join(root, FOLDER)))
    found = [name for name in names if f"{name}.json" in there]

    def read(name: str) -> ReceiptT:
        return _read(schema, _url(root, name), fingerprint)

    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(found, pool.map(read, found), strict=True))


def _url(root: str, name: str) -> str:
    return storage.join(root, FOLDER, f"{name}.json")


def _read(schema: type[ReceiptT], url: str, fingerprint: str) -> ReceiptT:
    data = storage.read_bytes(url)
    try:
        receipt = schema.model_validate(json.loads(data))
    except (ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{url} is not a receipt ({reason}); remove it and run again") from None
    if receipt.fingerprint != fingerprint:
        raise DataError(
            f"{url} belongs to other work (fingerprint {receipt.fingerprint[:12]}, "
            f"wanted {fingerprint[:12]}); give another root with --set root=URL"
        )
    return receipt
