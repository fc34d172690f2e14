"""A root that was moved: models that the promotion ledger names below its old URL are read below the new one.

Entries stay as they were written, since each has the digest of the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from genmod import storage
from genmod.errors import GenmodError
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import Manifest
from genmod.promotion import Evidence, LedgerEntry, LedgerModel, Promotions


def relocate(promotions: Promotions, root: str, roots: Sequence[str]) -> tuple[Promotions, str]:
    """The history with its URLs as they are now, and the old URL of the root; empty if it was not moved.

    Args:
        promotions: as the ledger has it.
        root: URL of the recipe's root.
        roots: folders in which models may be as well.
    """
    old = _old_root(promotions, root, (root, *roots))
    if not old:
        return promotions, ""

    def moved(url: str) -> str:
        return f"{root.rstrip('/')}{url[len(old) :]}" if storage.is_below(url, old) else url

    def evidence(found: Evidence | None) -> Evidence | None:
        return found and found.model_copy(update={"root": moved(found.root)})

    def model(found: LedgerModel) -> LedgerModel:
        changes = {"root": moved(found.root), "evaluation": evidence(found.evaluation)}
        return found.model_copy(update=changes)

    def entry(found: LedgerEntry) -> LedgerEntry:
        changes = {"model": model(found.model), "decision": evidence(found.decision)}
        return found.model_copy(update=changes)

    return replace(
        promotions,
        entries=tuple(map(entry, promotions.entries)),
        stack=tuple(map(model, promotions.stack)),
        pin=promotions.pin and entry(promotions.pin),
    ), old


def _old_root(promotions: Promotions, root: str, roots: Sequence[str]) -> str:
    """Where the root was when it had the newest model that is in no allowed folder; empty if unknown."""
    for model in reversed(promotions.stack):
        url = model.root
        try:
            if any(storage.is_below(url, each) for each in roots):
                continue
            if _scheme(url) != _scheme(root) or ".." in url.split("/"):
                continue
        except GenmodError:
            continue
        start = url.find("/", url.find("://") + 3 if "://" in url else 0)
        while start >= 0:
            inner = url[start + 1 :]
            if inner and _is_there(storage.join(root, inner), model.digest):
                return url[:start]
            start = url.find("/", start + 1)
    return ""


def _scheme(url: str) -> str:
    return url.partition("://")[0] if "://" in url else "file"


def _is_there(root: str, digest: str) -> bool:
    """Whether a folder has this very model."""
    try:
        found = ManifestSnapshot().load(Manifest, root, "model")
    except (GenmodError, OSError):
        return False
    return found is not None and found.digest == digest
