"""Atomic writes and exactly one winner, on files and in memory."""

import threading
import uuid

import pytest

from genmod import storage
from genmod.errors import StorageError


@pytest.fixture(params=["file", "memory"])
def root(request, tmp_path):
    if request.param == "file":
        return str(tmp_path)
    return f"memory://{uuid.uuid4().hex}"


def test_written_objects_are_read(root):
    url = storage.join(root, "a", "b.bin")
    storage.write_bytes(url, b"one")
    storage.write_bytes(url, b"two")
    assert storage.read_bytes(url) == b"two"
    assert storage.size_bytes(url) == 3
    assert storage.sha256_of(url) == storage.sha256(b"two")
    assert storage.list_names(storage.join(root, "a")) == ["b.bin"]


def test_create_does_not_replace(root):
    url = storage.join(root, "receipt.json")
    assert storage.create(url, b"first")
    assert not storage.create(url, b"second")
    assert storage.read_bytes(url) == b"first"


def test_one_of_many_creators_wins(tmp_path):
    url, winners, start = str(tmp_path / "receipt"), [], threading.Barrier(12)

    def write(number):
        start.wait()
        if storage.create(url, b"%d" % number):
            winners.append(number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert storage.read_bytes(url) == b"%d" % winners[0]
    assert storage.list_names(str(tmp_path)) == ["receipt"]


def test_missing_objects(root):
    assert not storage.exists(storage.join(root, "no"))
    assert storage.list_names(storage.join(root, "no")) == []
    storage.remove(storage.join(root, "no"))
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(root, "no"))


def test_the_write_check_accepts_a_working_store(root):
    storage.check_writable(root)
    assert storage.list_names(root) == []


def test_the_write_check_refuses_an_unwritable_root(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="cannot be written"):
        storage.check_writable(str(tmp_path / "file" / "below"))


@pytest.mark.parametrize("part", ["/b", "s3://b/x", "../b", "a/../../b", "memory://x"])
def test_nothing_is_joined_that_leads_elsewhere(part):
    assert storage.join("s3://b/x", "y/z") == "s3://b/x/y/z"
    with pytest.raises(StorageError, match="is not a path below /a"):
        storage.join("/a", "b", part)


def test_a_recipe_may_place_its_outputs_elsewhere():
    assert storage.output_folder("/a", "samples") == "/a/samples"
    assert storage.output_folder("/a", "s3://b/x/") == "s3://b/x"
    assert storage.output_folder("s3://a", "/b") == "/b"


def test_an_unknown_scheme_is_named():
    with pytest.raises(StorageError, match="nosuch"):
        storage.exists("nosuch://a/b")


def test_walk_lists_every_file(tmp_path):
    for name in ("b", "a/c", "a/b/d"):
        storage.write_bytes(str(tmp_path / name), b"")
    names = [url.removeprefix("file://") for url in storage.walk_files(str(tmp_path))]
    assert sorted(names) == [str(tmp_path / n) for n in ("a/b/d", "a/c", "b")]
