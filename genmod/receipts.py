"""Receipts: which work units of a stage are done. A receipt is a small object, created only if absent.

The data of a work unit is written first, then its receipt. If several workers finish the same unit, exactly
one of them creates the receipt, and its data is used. The remaining work is every unit without a receipt.
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

RECEIPTS_FOLDER = "receipts"
"""Folder of the receipts below a stage's root."""

_PARALLEL = 16
"""Receipts that are read at the same time."""


class Receipt(Protocol):
    """A Config with the fingerprint of its stage's work."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the stage's work."""
        ...

    def model_dump(self, *, mode: str) -> dict[str, object]:
        """The receipt as JSON values."""
        ...

    @classmethod
    def model_validate(cls, obj: object) -> Self:
        """A receipt from JSON values."""
        ...


ReceiptT = TypeVar("ReceiptT", bound=Receipt)


def commit(root: str, name: str, receipt: ReceiptT) -> ReceiptT:
    """Publish the receipt of a work unit. Returns the valid one: this, or that of an earlier worker."""
    url = _url(root, name)
    if storage.create(url, canonical_json(receipt.model_dump(mode="json"))):
        return receipt
    return _read(type(receipt), url, receipt.fingerprint)


def load_receipt(schema: type[ReceiptT], root: str, name: str, fingerprint: str) -> ReceiptT | None:
    """The receipt of a work unit, or None if it is not done."""
    try:
        return _read(schema, _url(root, name), fingerprint)
    except FileNotFoundError:
        return None


def load_receipts(
    schema: type[ReceiptT], root: str, names: Sequence[str], fingerprint: str
) -> dict[str, ReceiptT]:
    """The existing receipts of these work units, in the order of ``names``.

    Raises:
        DataError: a receipt is invalid or belongs to other work.
    """
    files = set(storage.list_names(storage.join(root, RECEIPTS_FOLDER)))
    done = [name for name in names if f"{name}.json" in files]

    def read(name: str) -> ReceiptT:
        return _read(schema, _url(root, name), fingerprint)

    with ThreadPoolExecutor(_PARALLEL) as pool:
        return dict(zip(done, pool.map(read, done), strict=True))


def _url(root: str, name: str) -> str:
    return storage.join(root, RECEIPTS_FOLDER, f"{name}.json")


def _read(schema: type[ReceiptT], url: str, fingerprint: str) -> ReceiptT:
    data = storage.read_bytes(url)
    try:
        receipt = schema.model_validate(json.loads(data))
    except (ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{url} is not a valid receipt ({reason}); remove it, then run the same command again"
        ) from None
    if receipt.fingerprint != fingerprint:
        raise DataError(
            f"{url} belongs to other work (fingerprint {receipt.fingerprint[:12]}, "
            f"expected {fingerprint[:12]}); choose another root with --set root=URL"
        )
    return receipt
