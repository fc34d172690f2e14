"""Counts the decisions that were made with the same reference rows.

Each decision spends a part of the error that is planned for the rows (:mod:`genmod.evaluation.policy`). It is
recorded as an object that is created only if it does not exist, named by the fingerprint of its work, so that
a decision that is made again after a crash, or by two commands at once, counts once.
"""

from __future__ import annotations

import re

from genmod import storage
from genmod.config import canonical_json

_LOOK = re.compile(r"decision-[0-9a-f]{16,64}\.json")


def count_decision(root: str, work: str, facts: dict[str, str]) -> int:
    """Record a decision; return the number of decisions with these rows, this one included.

    Args:
        root: URL of the folder of these reference rows.
        work: fingerprint of the decision's work, hexadecimal.
        facts: what people want to know of it. Nothing reads them.

    Raises:
        StorageError: the store cannot be written.
    """
    storage.create(storage.join(root, f"decision-{work}.json"), canonical_json(facts))
    return decisions_made(root)


def decisions_made(root: str) -> int:
    """The number of decisions with the reference rows of a folder."""
    return sum(bool(_LOOK.fullmatch(name)) for name in storage.list_names(root))
