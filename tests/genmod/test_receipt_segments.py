"""Segments of receipts: read instead of single receipts, written again without harm."""

import pytest

from genmod import receipts, storage
from genmod.config import Config
from genmod.errors import DataError
from genmod.receipts import SEGMENTS_FOLDER, commit, load_receipts, write_segment


class Done(Config):
    fingerprint: str = "f"
    rows: int


def test_a_segment_stands_for_its_receipts(tmp_path, monkeypatch):
    root = str(tmp_path)
    made = {f"u{n}": commit(root, f"u{n}", Done(rows=n)) for n in range(5)}
    for _ in range(2):
        write_segment(root, {name: made[name] for name in ("u0", "u3")})
    assert len(storage.list_names(f"{root}/{SEGMENTS_FOLDER}")) == 1
    read = []
    real = receipts._read
    monkeypatch.setattr(receipts, "_read", lambda *call: read.append(call[1]) or real(*call))
    names = ["u4", "u0", "u9", "u3"]
    monkeypatch.setattr(receipts, "SEGMENT_RECEIPTS", 2)
    assert load_receipts(Done, root, names, "f") == {
        "u4": Done(rows=4),
        "u0": Done(rows=0),
        "u3": Done(rows=3),
    }
    assert list(load_receipts(Done, root, names, "f")) == ["u4", "u0", "u3"]
    assert {url.rpartition("/")[2] for url in read} == {"u4.json", "u9.json"}
    # Where more are missing, workers look them up.
    monkeypatch.setattr(receipts, "SEGMENT_RECEIPTS", 1)
    assert list(load_receipts(Done, root, names, "f")) == ["u0", "u3"]


def test_many_single_receipts_become_a_segment(tmp_path, monkeypatch):
    root = str(tmp_path)
    monkeypatch.setattr(receipts, "SEGMENT_RECEIPTS", 3)
    names = [f"u{n}" for n in range(4)]
    for n, name in enumerate(names):
        commit(root, name, Done(rows=n))
    first = load_receipts(Done, root, names, "f")
    for name in names:
        storage.remove(f"{root}/receipts/{name}.json")
    assert load_receipts(Done, root, names, "f") == first


@pytest.mark.parametrize(
    "data", [b"[]", b'{"u0": 3}', b'{"u0": {"fingerprint": "g", "rows": 1}}', b"{"]
)
def test_a_segment_that_is_none_is_an_error_that_names_it(tmp_path, data):
    storage.create(f"{tmp_path}/{SEGMENTS_FOLDER}/x.json", data)
    with pytest.raises(DataError, match=r"receipt-segments/x\.json"):
        load_receipts(Done, str(tmp_path), ["u0"], "f")
