"""Receipts: which work units of a stage are done. A receipt is a small object, created only if absent.

The data of a work unit is written first, then its receipt. If several workers finish the same unit, exactly
one of them creates the receipt, and its data is used. The remaining work is every unit without a receipt.

The driver gathers receipts of large jobs into segments, which are read instead of them: a few requests take
the place of one for each unit. A segment repeats receipts that exist, so it may be lost or written twice.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, Self, TypeVar, cast

from pydantic import ValidationError

from genmod import storage
from genmod.budget import BUDGET
from genmod.config import canonical_json
from genmod.documents import parse_document, parse_json, validate
from genmod.errors import DataError, sanitize
from genmod.memory import no_garbage_collection

RECEIPTS_FOLDER = "receipts"
"""Folder of the receipts below a stage's root."""

_REMEDY = "remove it, then run the same command again"

SEGMENTS_FOLDER = "receipt-segments"
"""Folder of the segments below a stage's root."""

SEGMENT_RECEIPTS = 1_000
"""Receipts of a segment, at least."""

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

    Where there are segments, the receipts that they lack are looked up only if these are few. Otherwise the
    workers find them, so that a large folder is not listed.

    Raises:
        DataError: a receipt is invalid or belongs to other work.
    """
    wanted = set(names)
    with no_garbage_collection():
        gathered = _read_segments(schema, root, fingerprint, wanted)
    left = [name for name in names if name not in gathered]
    if not gathered and left:
        files = set(storage.list_names(storage.join(root, RECEIPTS_FOLDER)))
        left = [name for name in left if f"{name}.json" in files]
    if not gathered or len(left) <= SEGMENT_RECEIPTS:

        def read(name: str) -> ReceiptT | None:
            return load_receipt(schema, root, name, fingerprint)

        with ThreadPoolExecutor(_PARALLEL) as pool:
            found = zip(left, pool.map(read, left), strict=True)
            single = {name: receipt for name, receipt in found if receipt is not None}
        if len(single) >= SEGMENT_RECEIPTS:
            write_segment(root, single)
        gathered |= single
    return {name: gathered[name] for name in names if name in gathered}


def write_segment(root: str, receipts: Mapping[str, Receipt]) -> None:
    """Write receipts that exist as one object. Its name contains its digest, so any writer may repeat it."""
    values = {name: receipt.model_dump(mode="json") for name, receipt in receipts.items()}
    data = canonical_json(values)
    name = f"{storage.sha256(data)[:16]}.json"
    storage.create(storage.join(root, SEGMENTS_FOLDER, name), data)


def _read_segments(
    schema: type[ReceiptT], root: str, fingerprint: str, wanted: Collection[str]
) -> dict[str, ReceiptT]:
    """The receipts in all segments, as far as they are wanted. DataError for those of other work."""
    folder = storage.join(root, SEGMENTS_FOLDER)
    urls = [storage.join(folder, name) for name in storage.list_names(folder)]
    found: dict[str, ReceiptT] = {}

    def fetch(url: str) -> bytes:
        return storage.read_bytes(url, BUDGET.document_bytes)

    with ThreadPoolExecutor(_PARALLEL) as pool:
        for url, data in zip(urls, pool.map(fetch, urls), strict=True):
            values: Any = parse_json(data, url, _REMEDY)
            if not isinstance(values, dict):
                raise DataError(f"{url} is no segment of receipts; {_REMEDY}")
            for name, value in cast("dict[str, Any]", values).items():
                if name in wanted:
                    receipt = validate(cast("type[Any]", schema), value, "a receipt", url, _REMEDY)
                    found[name] = _checked(receipt, url, fingerprint)
    return found


def _url(root: str, name: str) -> str:
    return storage.join_below(storage.join(root, RECEIPTS_FOLDER), f"{name}.json")


def _read(schema: type[ReceiptT], url: str, fingerprint: str) -> ReceiptT:
    try:
        data = storage.read_bytes(url, BUDGET.document_bytes)
    except IsADirectoryError:
        raise DataError(f"{url} is a folder, not a receipt; {_REMEDY}") from None
    receipt: ReceiptT = parse_document(cast("type[Any]", schema), data, "a receipt", url, _REMEDY)
    return _checked(receipt, url, fingerprint)


def _checked(receipt: ReceiptT, url: str, fingerprint: str) -> ReceiptT:
    """The receipt, after checking that it is of this work."""
    if receipt.fingerprint != fingerprint:
        raise DataError(
            f"{url} belongs to other work (fingerprint {sanitize(receipt.fingerprint[:12])}, "
            f"expected {fingerprint[:12]}); choose another root with --set root=URL"
        )
    return receipt
