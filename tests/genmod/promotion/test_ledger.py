"""The chain of entries: read, extended, altered, and written by several at once. No Ray, no MLflow."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from genmod import storage
from genmod.config import canonical_json
from genmod.errors import DataError, StorageError
from genmod.promotion import Ledger, LedgerEntry, ledger_problems
from tests.genmod.promotion.histories import change, extend, letters

MEMORY = "memory://promotions"


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    if request.param == "file":
        return str(tmp_path / "promotions")
    storage.remove(MEMORY)
    return MEMORY


def test_a_chain_is_read_as_it_was_written(url):
    ledger = Ledger(url, "vae")
    assert ledger.read().champion is None
    written = extend(ledger, "adopt a", "promote b", "rollback a", "pin c", "unpin c", "repair c")
    read = Ledger(url, "vae").read()
    assert read == written
    assert [entry.number for entry in read.entries] == [1, 2, 3, 4, 5, 6]
    befores = [entry.before for entry in read.entries]
    assert befores == [None, *(entry.digest for entry in read.entries[:-1])]
    assert [entry.replaces for entry in read.entries] == [
        None if letter is None else letter * 64 for letter in (None, "a", "b", "a", "c", "c")
    ]
    assert str(read.entries[0].author) == "kim@host"
    assert storage.list_names(ledger.root, pending=True) == [
        f"promotion-{number:06d}.json" for number in range(1, 7)
    ]
    assert Ledger(url, "gan").read().entries == ()


def test_only_one_of_two_writers_continues_a_chain(url):
    first, second = Ledger(url, "vae"), Ledger(url, "vae")
    start = extend(first, "adopt a")
    assert first.append(start, change("promote b")) is not None
    assert second.append(start, change("promote c")) is None
    assert letters(second.read()) == "ab"


ALTERED = {
    "another reason": lambda entry: entry | {"reason": "better"},
    "another model": lambda entry: entry | {"model": entry["model"] | {"digest": "e" * 64}},
    "another author": lambda entry: entry | {"author": {"user": "me@here", "job": ""}},
    "another time": lambda entry: entry | {"time": "2020-01-01T00:00:00Z"},
    "another digest": lambda entry: entry | {"digest": "0" * 64},
}
FORGED = {
    "other start": (lambda entry: entry | {"before": "0" * 64}, "does not follow"),
    "other number": (lambda entry: entry | {"number": 9}, "it is entry 9, expected 2"),
    "other name": (lambda entry: entry | {"name": "gan"}, "it is of the model gan"),
    "other champion": (lambda entry: entry | {"replaces": "0" * 64}, "replaces another champion"),
    "no decision": (lambda entry: entry | {"decision": None}, "only a promotion has a decision"),
    "rollback": (
        lambda entry: entry | {"action": "rollback", "decision": None},
        "not the previous champion",
    ),
    "unpin": (lambda entry: entry | {"action": "unpin", "decision": None}, "is not pinned"),
    "repair": (lambda entry: entry | {"action": "repair", "decision": None}, "is not the champion"),
}


def rewrite(ledger, number, change_entry, *, seal):
    """Replace an entry by a changed one, whose digest fits if ``seal``."""
    url = storage.join(ledger.root, f"promotion-{number:06d}.json")
    entry = change_entry(json.loads(storage.read_bytes(url)))
    if seal:
        entry = LedgerEntry.model_validate(entry).sealed().model_dump(mode="json")
    storage.write_bytes(url, canonical_json(entry))


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_entry_is_an_error_with_a_remedy(url, name):
    ledger = Ledger(url, "vae")
    extend(ledger, "adopt a", "promote b", "promote c")
    rewrite(ledger, 2, ALTERED[name], seal=False)
    with pytest.raises(DataError, match=r"000002\.json does not match its own digest.*; restore"):
        ledger.read()


@pytest.mark.parametrize("name", ALTERED.keys() - {"another digest"})
def test_an_altered_entry_with_a_new_digest_breaks_the_chain(url, name):
    ledger = Ledger(url, "vae")
    extend(ledger, "adopt a", "promote b", "promote c")
    rewrite(ledger, 2, ALTERED[name], seal=True)
    with pytest.raises(DataError, match=r"00000[23]\.json does not continue the promotion ledger"):
        ledger.read()


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_entry_that_cannot_follow_is_refused(url, name):
    ledger = Ledger(url, "vae")
    extend(ledger, "adopt a", "promote b")
    forge, reason = FORGED[name]
    rewrite(ledger, 2, forge, seal=True)
    with pytest.raises(DataError, match=reason):
        ledger.read()


@pytest.mark.parametrize("number", [1, 2])
def test_a_missing_entry_is_an_error_with_a_remedy(url, number):
    ledger = Ledger(url, "vae")
    extend(ledger, "adopt a", "promote b", "promote c")
    storage.remove(storage.join(ledger.root, f"promotion-{number:06d}.json"))
    with pytest.raises(DataError, match=rf"00000{number}\.json is missing.*restore the ledger"):
        ledger.read()


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff", b"{" * 999, b" " * 70_000])
def test_what_is_no_entry_is_an_error(url, data):
    ledger = Ledger(url, "vae")
    storage.write_bytes(storage.join(ledger.root, "promotion-000001.json"), data)
    with pytest.raises(DataError, match="promotion-000001"):
        ledger.read()


def test_other_files_in_the_folder_are_none_of_the_ledger(url):
    ledger = Ledger(url, "vae")
    extend(ledger, "adopt a")
    for name in ("promotion-000002.json.bak", "promotion-2.json", "notes.txt"):
        storage.write_bytes(storage.join(ledger.root, name), b"x")
    assert letters(extend(ledger, "promote b")) == "ab"


class Overwriting:
    """A store whose create-if-absent writes replace what is there."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr("genmod.storage.folders.create", self.create)

    def create(self, url, data):
        storage.write_bytes(url, data)
        return True


def test_a_store_without_create_if_absent_is_refused(tmp_path, monkeypatch):
    Overwriting(monkeypatch)
    ledger = Ledger(str(tmp_path), "vae")
    with pytest.raises(StorageError, match="does not enforce create-if-absent"):
        extend(ledger, "adopt a")
    assert ledger.read().entries == ()


def race(ledgers: list[Ledger], rounds: int) -> None:
    """In each round every writer tries until it has written one entry, all at the same time."""

    def write(item: tuple[int, Ledger]) -> int:
        number, ledger = item
        while True:
            promotions = ledger.read()
            letter = "abcdef"[number % 6]
            digest = promotions.champion.digest if promotions.champion else ""
            action = "repair" if digest == letter * 64 else "adopt"
            written = ledger.append(promotions, change(f"{action} {letter}"))
            if written is not None:
                return len(written.entries)

    with ThreadPoolExecutor(len(ledgers)) as pool:
        for number in range(rounds):
            before = len(ledgers[0].read().entries)
            numbers = list(pool.map(write, enumerate(ledgers)))
            assert sorted(numbers) == [before + 1 + each for each in range(len(ledgers))], number
            assert len(ledgers[0].read().entries) == before + len(ledgers)


def test_races_give_one_line_of_history(tmp_path):
    for writers in (2, 3, 4):
        url = str(tmp_path / str(writers))
        race([Ledger(url, "vae") for _ in range(writers)], rounds=4)


@pytest.mark.slow
def test_races_on_an_object_store_give_one_line_of_history(s3_root):
    for writers in (2, 3, 4):
        race([Ledger(f"{s3_root}/{writers}", "vae") for _ in range(writers)], rounds=3)


def test_verify_names_what_the_chain_refers_to_and_is_not_there(tmp_path):
    ledger = Ledger(str(tmp_path / "promotions"), "vae")
    assert ledger_problems(ledger.root) == []
    extend(ledger, "adopt a")  # its folders are elsewhere, so they are not opened
    assert ledger_problems(ledger.root) == []
    rewrite(ledger, 1, lambda entry: entry | {"reason": "x"}, seal=False)
    (problem,) = ledger_problems(ledger.root)
    assert "does not match its own digest" in problem
    assert Path(ledger.root).is_dir()
