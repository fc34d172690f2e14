"""Receipts: which work units of a stage are done. A receipt is a small object, created only if absent.

The data of a work unit is written first, then its receipt. If several workers finish the same unit, exactly
one of them creates the receipt, and its data is used. The remaining work is every unit without a receipt.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, Self, TypeVar, cast

from pydantic import ValidationError

from genmod import storage
from genmod.budget import BUDGET
from genmod.config import canonical_json
from genmod.documents import parse_document
from genmod.errors import DataError, sanitize

RECEIPTS_FOLDER = "receipts"
"""Folder of the receipts below a stage's root."""

_REMEDY = "remove it, then run the same command again"

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


@contextmanager
def together(root: str) -> Generator[None]:
    """Build a manifest from receipts in the body. DataError if their values do not fit together."""
    try:
        yield
    except ValidationError as error:
        reason = str(error.errors(include_url=False, include_input=False)[0]["msg"])[:160]
        raise DataError(
            f"{root}: its receipts do not fit together ({sanitize(reason)}); remove that folder and run the "
            "stage again"
        ) from None


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
    return storage.join_below(storage.join(root, RECEIPTS_FOLDER), f"{name}.json")


def _read(schema: type[ReceiptT], url: str, fingerprint: str) -> ReceiptT:
    try:
        data = storage.read_bytes(url, BUDGET.document_bytes)
    except IsADirectoryError:
        raise DataError(f"{url} is a folder, not a receipt; {_REMEDY}") from None
    receipt: ReceiptT = parse_document(cast("type[Any]", schema), data, "a receipt", url, _REMEDY)
    if receipt.fingerprint != fingerprint:
        raise DataError(
            f"{url} belongs to other work (fingerprint {sanitize(receipt.fingerprint[:12])}, "
            f"expected {fingerprint[:12]}); choose another root with --set root=URL"
        )
    return receipt
