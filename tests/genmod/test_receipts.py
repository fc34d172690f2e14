"""Receipts: one worker wins, and receipts of other work are refused."""

import os

import pytest

from genmod import receipts, storage
from genmod.budget import BUDGET
from genmod.config import Config
from genmod.errors import DataError, StorageError

ROOT = "memory://receipts"


class Note(Config):
    fingerprint: str
    text: str


@pytest.fixture(params=["memory", "file"])
def root(request, tmp_path):
    if request.param == "file":
        return str(tmp_path / "work")
    storage.remove(ROOT)
    return ROOT


def test_the_first_worker_wins_and_the_others_get_its_receipt(root):
    first, second = Note(fingerprint="f", text="first"), Note(fingerprint="f", text="second")
    assert receipts.commit(root, "a", first) == first
    assert receipts.commit(root, "a", second) == first
    assert receipts.load_receipt(Note, root, "a", "f") == first


def test_work_units_without_a_receipt_are_missing(root):
    names = [f"{number:03d}" for number in range(20)]
    assert receipts.load_receipts(Note, root, names, "f") == {}
    for name in reversed(names[::2]):
        receipts.commit(root, name, Note(fingerprint="f", text=name))
    done = receipts.load_receipts(Note, root, names, "f")
    assert list(done) == names[::2]
    assert all(note.text == name for name, note in done.items())
    assert receipts.load_receipt(Note, root, names[1], "f") is None


def test_a_receipt_of_other_work_is_refused(root):
    receipts.commit(root, "a", Note(fingerprint="theirs", text=""))
    with pytest.raises(DataError, match="belongs to other work"):
        receipts.load_receipts(Note, root, ["a"], "ours")
    with pytest.raises(DataError, match="belongs to other work"):
        receipts.commit(root, "a", Note(fingerprint="ours", text=""))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"fingerprint": "f"}',
        b'{"fingerprint": 1, "text": ""}',
        b'{"fingerprint": "f", "text": "", "more": 1}',
        b"[]",
        b"null",
        b"\xff\xfe",
        b'"\\ud800"',
        b"[" * 100_000,
        b"[" * 1000 + b"]" * 1000,
        b'{"fingerprint": "f", "text": 1e999}',
    ],
)
def test_a_broken_receipt_is_an_error_that_names_it(root, data):
    storage.write_bytes(storage.join(root, receipts.RECEIPTS_FOLDER, "a.json"), data)
    with pytest.raises(DataError, match=r"a\.json.*remove it, then run") as error:
        receipts.load_receipt(Note, root, "a", "f")
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(DataError, match=r"a\.json.*remove it, then run"):
        receipts.load_receipts(Note, root, ["a"], "f")


def test_a_folder_in_place_of_a_receipt_is_an_error(tmp_path):
    (tmp_path / receipts.RECEIPTS_FOLDER / "a.json").mkdir(parents=True)
    with pytest.raises(DataError, match=r"a\.json"):
        receipts.load_receipt(Note, str(tmp_path), "a", "f")


def test_the_name_of_a_receipt_does_not_lead_elsewhere(tmp_path):
    with pytest.raises(StorageError, match="not a relative path"):
        receipts.load_receipt(Note, str(tmp_path), "../../etc/passwd", "f")


def test_a_receipt_without_end_is_not_read(tmp_path):
    receipts.commit(str(tmp_path), "a", Note(fingerprint="f", text=""))
    os.truncate(tmp_path / "receipts" / "a.json", BUDGET.document_bytes + 1)
    with pytest.raises(DataError, match=r"a\.json is longer than"):
        receipts.load_receipt(Note, str(tmp_path), "a", "f")
