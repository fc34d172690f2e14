"""The aliases of a registry against the ledger: equal, behind after a crash, or moved by hand."""

from __future__ import annotations

import pytest

from genmod import storage
from genmod.promotion import Aliases, Ledger, Promotions, compare_aliases, mark_of
from tests.genmod.promotion.histories import extend


@pytest.fixture
def promotions():
    storage.remove("memory://aliases")
    return extend(Ledger("memory://aliases", "vae"), "promote a", "promote b", "promote c")


def at(promotions, number):
    """The mark after an entry."""
    last = promotions.entries[number - 1]
    return f"{last.number} {last.digest} memory://aliases/vae"


def aliases(text, mark=""):
    champion, previous = (None if letter == "-" else letter.strip("?") * 64 for letter in text)
    return Aliases(champion, previous, mark)


def test_the_mark_of_the_newest_entry(promotions):
    assert mark_of(promotions, "memory://aliases/vae") == at(promotions, 3)
    assert mark_of(Promotions("vae"), "x") == ""


@pytest.mark.parametrize(
    ("mark", "found", "kind"),
    [
        (3, "cb", "equal"),
        (2, "ba", "behind"),  # killed before the first alias was set
        (2, "ca", "behind"),  # between the two
        (2, "cb", "behind"),  # before the mark
        (1, "a-", "behind"),
        (1, "ba", "behind"),  # a slower command set those of entry 2
        (0, "--", "behind"),
        (0, "cb", "behind"),
        (3, "ba", "drift"),  # a rollback by hand
        (3, "c-", "drift"),
        (3, "--", "drift"),
        (3, "db", "drift"),
        (3, "?b", "drift"),
        (2, "ab", "drift"),
        (2, "da", "drift"),
    ],
)
def test_aliases(promotions, mark, found, kind):
    state = compare_aliases(promotions, aliases(found, at(promotions, mark) if mark else ""))
    assert state.kind == kind
    assert bool(state.text) == (kind != "equal")


@pytest.mark.parametrize("mark", ["9 " + "0" * 64 + " s3://b/x", "1 " + "0" * 64, "x", "3", "\x1b"])
def test_a_mark_of_another_ledger(promotions, mark):
    assert compare_aliases(promotions, aliases("ba", mark)).kind == "drift"
    assert "another ledger" in compare_aliases(promotions, aliases("ba", mark)).text
    assert compare_aliases(promotions, aliases("cb", mark)).kind == "behind"


def test_an_empty_ledger():
    empty = Promotions("vae")
    assert compare_aliases(empty, aliases("--")).kind == "equal"
    assert compare_aliases(empty, aliases("a-")).kind == "drift"
    lost = compare_aliases(empty, aliases("a-", "1 " + "0" * 64))
    assert (lost.kind, "lost entries" in lost.text) == ("drift", True)
