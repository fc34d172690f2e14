"""Whether the aliases of a model registry say what the ledger says: yes, they are behind, or they drifted.

The registry keeps a mark, the newest entry that its aliases follow. It is set after the aliases. So a
command that was killed between the ledger and the aliases leaves them behind their ledger, which the next
command corrects. An alias that no entry since the mark explains was moved by hand, and is never overwritten
silently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from genmod.promotion.history import Promotions

_MARK = re.compile(r"([0-9]{1,6}) ([0-9a-f]{64})( .*)?", re.DOTALL)


@dataclass(frozen=True)
class Aliases:
    """What a registry says about one model: digests of manifests, or None where an alias is not set."""

    champion: str | None
    """Empty for a version that genmod did not register."""
    previous: str | None
    mark: str
    """As :func:`mark_of` made it; empty if none was set."""


@dataclass(frozen=True)
class AliasState:
    """The aliases compared with the ledger."""

    kind: Literal["equal", "behind", "drift"]
    text: str = ""
    """What differs, in words."""


def mark_of(promotions: Promotions, root: str) -> str:
    """The mark of the newest entry: its number and digest, and the ledger's URL for people."""
    last = promotions.last
    return f"{last.number} {last.digest} {root}"[:4000] if last else ""


def compare_aliases(promotions: Promotions, aliases: Aliases) -> AliasState:
    """Compare the aliases of a registry with the ledger. The registry's text is not trusted."""
    marked, is_other = _marked(promotions, aliases.mark)
    following = promotions.states[marked:]
    found = {"champion": aliases.champion, "previous": aliases.previous}
    newest = dict(zip(found, following[-1], strict=True))
    drifted = [
        f"alias {alias!r} is {_short(value)}, the ledger says {_short(newest[alias])}"
        for number, (alias, value) in enumerate(found.items())
        if value not in {state[number] for state in following}
    ]
    if drifted and is_other:
        other = aliases.mark.split(" ", 2)[2:]
        drifted.append(
            f"the aliases follow another ledger, or one that lost entries ({' '.join(other)})"
        )
    if drifted:
        return AliasState("drift", "; ".join(drifted))
    if found == newest and aliases.mark and marked == len(promotions.entries) and not is_other:
        return AliasState("equal")
    if not promotions.entries and found == newest and not is_other:
        return AliasState("equal")
    return AliasState("behind", f"the aliases do not follow entry {len(promotions.entries)} yet")


def _marked(promotions: Promotions, mark: str) -> tuple[int, bool]:
    """The number of the newest entry that the aliases follow, and whether the mark is not of this ledger."""
    if not mark:
        return 0, False
    match = _MARK.fullmatch(mark)
    entries = promotions.entries
    number = int(match[1]) if match else 0
    if match and 1 <= number <= len(entries) and entries[number - 1].digest == match[2]:
        return number, False
    return len(entries), True


def _short(digest: str | None) -> str:
    if digest is None:
        return "not set"
    return digest[:12] or "a version that genmod did not register"
