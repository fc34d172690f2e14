"""What a chain of entries means: the champion, the one before, the pin, and models that were rolled back.

The champions form a stack. A promotion, an adoption, or a pin to another model puts its model on top; a
rollback takes the top off. So ``previous`` is the champion before the newest change that was not rolled back,
and several rollbacks go back step by step.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from genmod.promotion.entry import LedgerEntry, LedgerModel

Digests = tuple[str | None, str | None]
"""Digests of the champion and of the previous one."""


class ImpossibleEntry(ValueError):
    """An entry that cannot follow the ones before."""


@dataclass(frozen=True)
class Promotions:
    """The history of one model's champions, and where it leads."""

    name: str
    """The model in the recipe."""
    entries: tuple[LedgerEntry, ...] = ()
    stack: tuple[LedgerModel, ...] = ()
    """The champions that a rollback can return to; the last one is the champion."""
    pin: LedgerEntry | None = None
    """The entry that pinned the champion; None if decisions may replace it."""
    rolled_back: dict[str, int] = field(default_factory=dict[str, int])
    """Digest of a model that was rolled back -> number of that entry."""
    states: tuple[Digests, ...] = ((None, None),)
    """Champion and previous before the first entry, and after each."""

    @property
    def champion(self) -> LedgerModel | None:
        """The champion; None before the first entry."""
        return self.stack[-1] if self.stack else None

    @property
    def previous(self) -> LedgerModel | None:
        """The champion that a rollback returns to; None if there is none."""
        return self.stack[-2] if len(self.stack) > 1 else None

    @property
    def last(self) -> LedgerEntry | None:
        """The newest entry, None if there is none."""
        return self.entries[-1] if self.entries else None

    @property
    def since(self) -> LedgerEntry | None:
        """The entry that made the champion the champion."""
        made = (e for e in reversed(self.entries) if e.replaces != e.model.digest)
        return next(made, None)

    def of_model(self, digest: str) -> list[LedgerEntry]:
        """The entries that made a model the champion, or replaced it, oldest first."""
        return [entry for entry in self.entries if digest in (entry.model.digest, entry.replaces)]

    def applied(self, decision: str) -> LedgerEntry | None:
        """The entry that applied a decision, by the decision's digest."""
        found = (
            e for e in self.entries if e.decision is not None and e.decision.digest == decision
        )
        return next(found, None)

    def after(self, entry: LedgerEntry) -> Promotions:
        """The history with one more entry.

        Raises:
            ImpossibleEntry: the entry cannot follow; says why.
        """
        self._check(entry)
        stack, rolled_back = list(self.stack), dict(self.rolled_back)
        champion, model = self.champion, entry.model
        if entry.action == "rollback":
            rolled_back[stack.pop().digest] = entry.number
            stack[-1] = model
        elif champion is not None and champion.digest == model.digest:
            stack[-1] = model
        else:
            stack.append(model)
        rolled_back.pop(model.digest, None)
        pin = {"pin": entry, "unpin": None}.get(entry.action, self.pin)
        state = (stack[-1].digest, stack[-2].digest if len(stack) > 1 else None)
        return replace(
            self,
            entries=(*self.entries, entry),
            stack=tuple(stack),
            pin=pin,
            rolled_back=rolled_back,
            states=(*self.states, state),
        )

    def _check(self, entry: LedgerEntry) -> None:
        """Raise ImpossibleEntry unless the entry can follow."""
        last, champion, digest = self.last, self.champion, entry.model.digest
        current = champion.digest if champion else None
        problems = {
            f"it is entry {entry.number}, expected {len(self.entries) + 1}": entry.number
            != len(self.entries) + 1,
            "it does not follow the entry before": entry.before != (last.digest if last else None),
            f"it is of the model {entry.name}": entry.name != self.name,
            "it replaces another champion": entry.replaces != current,
            "only a promotion has a decision": (entry.decision is None)
            == (entry.action == "promote"),
            "the champion is pinned": self.pin is not None
            and entry.action in ("promote", "adopt", "rollback"),
            "the champion is not pinned": self.pin is None and entry.action == "unpin",
            "the model is the champion already": digest == current
            and entry.action in ("promote", "adopt"),
            "the model is not the champion": digest != current
            and entry.action in ("unpin", "repair"),
            "the model was rolled back": entry.action == "promote" and digest in self.rolled_back,
            "the model is not the previous champion": entry.action == "rollback"
            and (self.previous is None or self.previous.digest != digest),
        }
        for problem, found in problems.items():
            if found:
                raise ImpossibleEntry(problem)
