"""What is wrong with a ledger: its chain, and the decisions and the champion that it refers to."""

from __future__ import annotations

from genmod import storage
from genmod.errors import DataError
from genmod.manifest import Manifest, load_manifest
from genmod.promotion.entry import LedgerEntry
from genmod.promotion.ledger import Ledger


def ledger_problems(folder: str) -> list[str]:
    """The problems of one model's chain, one line each; empty if all of it fits together.

    Manifests are looked up only below the folder that contains the ledger, whatever its entries say.

    Args:
        folder: URL of the folder with the entries, ``LEDGER/NAME``.
    """
    url, _, name = storage.resolve(folder).rpartition("/")
    try:
        promotions = Ledger(url, name).read()
    except DataError as error:
        return [str(error)]
    top = url.rpartition("/")[0]
    problems = [line for entry in promotions.entries for line in _decision_problems(entry, top)]
    champion, last = promotions.champion, promotions.last
    if champion is not None and last is not None and storage.is_below(champion.root, top):
        found = _load(champion.root, "model")
        if isinstance(found, str):
            problems.append(f"entry {last.number}: the champion's model: {found}")
        elif found.digest != champion.digest:
            problems.append(
                f"entry {last.number}: the champion is {champion.digest[:12]}, but {champion.root} contains "
                f"{found.digest[:12]}"
            )
    return problems


def _decision_problems(entry: LedgerEntry, top: str) -> list[str]:
    decision = entry.decision
    if decision is None or not storage.is_below(decision.root, top):
        return []
    found = _load(decision.root, "decision")
    start = f"entry {entry.number}: the decision at {decision.root}"
    if isinstance(found, str):
        return [f"{start}: {found}"]
    wrong = {
        "is another one": found.digest != decision.digest,
        "is on another model": found.parents.get("model") != entry.model.digest,
        "compares with another champion": found.parents.get("champion") != entry.replaces,
        "does not promote": found.metadata.get("promote") is not True,
    }
    return [f"{start} {text}" for text, is_wrong in wrong.items() if is_wrong]


def _load(root: str, kind: str) -> Manifest | str:
    """A manifest, or what is wrong with it."""
    try:
        return load_manifest(Manifest, root, kind) or "missing"
    except DataError as error:
        return str(error)
