"""What a chain means: the champion, the previous one after rollbacks, pins, and what was rolled back."""

from __future__ import annotations

import itertools

import pytest

from genmod import storage
from genmod.promotion import Ledger
from genmod.promotion.history import ImpossibleEntry
from tests.genmod.promotion.histories import extend, letters, model


@pytest.fixture
def ledger():
    storage.remove("memory://history")
    return Ledger("memory://history", "vae")


@pytest.mark.parametrize(
    ("changes", "stack"),
    [
        ("adopt a", "a"),
        ("adopt a,promote b,promote c", "abc"),
        ("adopt a,promote b,promote c,rollback b", "ab"),
        ("adopt a,promote b,promote c,rollback b,rollback a", "a"),
        ("adopt a,promote b,promote c,rollback b,promote d", "abd"),
        ("adopt a,promote b,promote c,rollback b,promote d,rollback b,rollback a", "a"),
        ("adopt a,promote b,pin b,unpin b,rollback a", "a"),
        ("adopt a,promote b,pin a", "aba"),
        ("adopt a,promote b,pin a,unpin a,rollback b", "ab"),
        ("adopt a,promote b,pin c,pin d,unpin d", "abcd"),
        ("adopt a,promote b,repair b,rollback a", "a"),
        ("adopt a,promote b,rollback a,pin b", "ab"),
        ("adopt a,promote b,rollback a,adopt b,unpin?", "ab"),
    ],
)
def test_the_stack_of_champions(ledger, changes, stack):
    promotions = extend(ledger, *[each for each in changes.split(",") if "?" not in each])
    assert letters(promotions) == stack
    assert promotions.champion == model(stack[-1])
    assert promotions.previous == (model(stack[-2]) if len(stack) > 1 else None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ("promote a,rollback a", "not the previous champion"),
        ("promote a,promote b,rollback a,rollback b", "not the previous champion"),
        ("promote a,promote a", "is the champion already"),
        ("promote a,promote b,rollback a,promote b", "was rolled back"),
        ("promote a,pin a,promote b", "is pinned"),
        ("promote a,promote b,pin b,rollback a", "is pinned"),
        ("promote a,pin a,adopt b", "is pinned"),
        ("promote a,unpin a", "is not pinned"),
        ("promote a,pin a,unpin b", "is not the champion"),
        ("promote a,repair b", "is not the champion"),
        ("repair a", "is not the champion"),
    ],
)
def test_what_cannot_follow(ledger, changes, reason):
    *start, last = changes.split(",")
    extend(ledger, *start)
    with pytest.raises(ImpossibleEntry, match=reason):
        extend(ledger, last)
    assert len(ledger.read().entries) == len(start)


def test_a_model_that_was_rolled_back_is_marked_until_a_person_chooses_it(ledger):
    promotions = extend(ledger, "promote a", "promote b", "rollback a")
    assert promotions.rolled_back == {"b" * 64: 3}
    assert extend(ledger, "pin b").rolled_back == {}


def test_entries_of_a_model_and_of_a_decision(ledger):
    promotions = extend(ledger, "promote a", "promote b", "promote c", "rollback b")
    assert [e.number for e in promotions.of_model("b" * 64)] == [2, 3, 4]
    assert promotions.applied("c" * 64).number == 3
    assert promotions.applied("d" * 64) is None


def test_every_short_history_has_the_state_of_its_stack(ledger):
    """All histories of three changes: accepted or refused, and the states are those of the stack."""
    words = [f"{a} {m}" for a in ("promote", "rollback", "pin", "unpin") for m in "ab"]
    accepted = 0
    for texts in itertools.product(words, repeat=3):
        storage.remove("memory://history")
        promotions = ledger.read()
        for text in texts:
            try:
                promotions = extend(ledger, text)
            except ImpossibleEntry:
                continue
            accepted += 1
            digests = [each.digest for each in promotions.stack]
            assert promotions.states[-1] == (digests[-1], digests[-2] if digests[1:] else None)
            assert all(x != y for x, y in itertools.pairwise(digests))
        assert ledger.read() == promotions
    assert accepted > 500
