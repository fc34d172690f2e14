"""Models and changes of a ledger, for tests."""

from __future__ import annotations

from genmod.promotion import Author, Evidence, Ledger, LedgerChange, LedgerModel, Promotions

AUTHOR = Author(user="kim@host")


def model(letter: str) -> LedgerModel:
    """A model whose digest is a letter from a to f, 64 times."""
    digest = letter * 64
    evidence = Evidence(root=f"/r/evaluation/{letter}", digest=digest)
    return LedgerModel(
        digest=digest, root=f"/r/models/{letter}", evaluation=evidence, version=ord(letter) - 96
    )


def change(text: str) -> LedgerChange:
    """A change in two words, e.g. ``promote a``."""
    action, letter = text.split()
    decision = None
    if action == "promote":
        decision = Evidence(root=f"/r/decision/{letter}", digest=letter * 64)
    return LedgerChange(action, model(letter), f"because of {letter}", AUTHOR, decision)


def extend(ledger: Ledger, *texts: str) -> Promotions:
    """Read a ledger and append these changes."""
    promotions = ledger.read()
    for text in texts:
        continued = ledger.append(promotions, change(text))
        assert continued is not None
        promotions = continued
    return promotions


def letters(promotions: Promotions) -> str:
    """The stack of champions, one letter each."""
    return "".join(each.digest[0] for each in promotions.stack)
