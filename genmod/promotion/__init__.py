"""The promotion ledger: who became the champion of a model, when, and why. The source of truth for champions.

A ledger is a folder with one chain of numbered objects for each model. Each is written by a create-if-absent
write and carries the digest of the one before, so there is one line of history, and a missing or altered
entry is found.
"""

from genmod.promotion.aliases import Aliases, AliasState, compare_aliases, mark_of
from genmod.promotion.entry import (
    Action,
    Author,
    Evidence,
    LedgerEntry,
    LedgerModel,
)
from genmod.promotion.history import Promotions
from genmod.promotion.ledger import LEDGER_FILE, Ledger, LedgerChange
from genmod.promotion.problems import ledger_problems

__all__ = [
    "LEDGER_FILE",
    "Action",
    "AliasState",
    "Aliases",
    "Author",
    "Evidence",
    "Ledger",
    "LedgerChange",
    "LedgerEntry",
    "LedgerModel",
    "Promotions",
    "compare_aliases",
    "ledger_problems",
    "mark_of",
]
