"""Only regular files are read, no more of them than allowed, and none outside the folder of a manifest."""

import os
import resource
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from genmod import storage
from genmod.errors import DataError, StorageError

READS = {
    "read_bytes": storage.read_bytes,
    "read_ranges": lambda url: storage.read_ranges(url, [0], [10]),
    "read_blocks": lambda url: list(storage.read_blocks(url)),
    "sha256_of": storage.sha256_of,
    "filesystem": lambda url: storage.filesystem(url)[0].open(url, "rb").read(10),
    "cat_file": lambda url: storage.filesystem(url)[0].cat_file(url, 0, 10),
}


def pipe(path):
    os.mkfifo(path)


def zeros(path):
    path.symlink_to("/dev/zero")


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("make", [pipe, zeros, a_socket])
def test_what_is_not_a_regular_file_is_refused(make, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.tar"
    make(path)
    with pytest.raises(StorageError, match=r"x\.tar is a .*, expected a regular file; ") as error:
        read(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_folders_and_missing_files_keep_their_errors(read, tmp_path):
    with pytest.raises(IsADirectoryError):
        read(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        read(str(tmp_path / "none"))


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_links_to_files_are_read(read, tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read(str(tmp_path / "link")) == read(str(tmp_path / "file"))


def test_a_file_is_measured_before_it_is_read(tmp_path):
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 1 << 42)
    for limit in ({}, {"limit_bytes": 10}):
        with pytest.raises(DataError, match=r"sparse is longer than [0-9,]+ bytes"):
            storage.read_bytes(str(path), **limit)


def test_a_file_is_measured_while_it_is_read():
    path = "/proc/self/smaps"  # a regular file whose size is said to be 0
    if not os.path.exists(path):
        pytest.skip("this system has no /proc")
    assert os.stat(path).st_size == 0
    assert storage.read_bytes(path).count(b"\n") > 100
    with pytest.raises(DataError, match="longer than 5,000 bytes"):
        storage.read_bytes(path, 5_000)


@pytest.mark.parametrize("root", ["file", "memory", "s3"])
def test_an_object_at_the_limit_is_read(root, tmp_path, request):
    roots = {"file": lambda: str(tmp_path), "memory": lambda: f"memory://{uuid.uuid4().hex}"}
    folder = roots[root]() if root in roots else request.getfixturevalue("s3_root")
    url = f"{folder}/x"
    for data in (b"", b"x" * 1000, b"y" * (5 << 20)):
        storage.write_bytes(url, data)
        assert storage.read_bytes(url, len(data)) == data
        assert storage.read_below(folder, "x", len(data)) == data
        assert b"".join(storage.read_blocks(url)) == data
        for read in (storage.read_bytes, lambda url, n: storage.read_below(folder, "x", n)):
            with pytest.raises(DataError, match="is longer than"):
                read(url, len(data) - 1)


def test_huge_ranges_allocate_nothing(tmp_path):
    (tmp_path / "x").write_bytes(b"0123456789")
    ranges = storage.read_ranges(str(tmp_path / "x"), [8, 1 << 50, 0], [1 << 60, 1 << 60, 3])
    assert ranges == [b"89", b"", b"012"]


@pytest.fixture
def folder(tmp_path):
    """A dataset's folder, reached through a link, next to a file that it must not reach."""
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "real2").mkdir()
    (tmp_path / "real2" / "x").write_bytes(b"secret")
    (tmp_path / "real" / "x").write_bytes(b"content")
    (tmp_path / "real" / "sub" / "y").write_bytes(b"content")
    (tmp_path / "data").symlink_to("real")
    return tmp_path / "data"


@pytest.mark.parametrize("link", ["x", "sub/../sub/y", "loop", "{root}/x", "{real}/sub/y"])
def test_files_below_a_folder_are_read(folder, link):
    target = link.format(root=folder, real=folder.resolve())
    names = ["x", "sub/y"]
    if link != "loop":
        (folder / "link").symlink_to(target)
        (folder / "sublink").symlink_to("sub")
        names += ["link", "sublink/y"]
    for name in names:
        assert storage.read_below(str(folder), name) == b"content"
        handle = storage.open_below(str(folder), name)
        assert os.pread(handle, 100, 0) == b"content"
        os.close(handle)


@pytest.mark.parametrize(
    ("link", "name"),
    [
        ("../secret", "link"),
        ("{parent}/secret", "link"),
        ("/etc/passwd", "link"),
        ("..", "link/secret"),
        ("../real2", "link/x"),
        ("/dev/zero", "link"),
        ("/proc/self/environ", "link"),
        ("link", "link"),
    ],
)
def test_links_out_of_a_folder_are_refused(folder, link, name):
    (folder / "link").symlink_to(link.format(parent=folder.parent))
    for read in (storage.read_below, storage.open_below):
        with pytest.raises(StorageError, match=r"link.* is a link ") as error:
            read(str(folder), name)
        assert "\n" not in str(error.value)


def test_other_things_below_a_folder_are_refused(folder):
    os.mkfifo(folder / "pipe")
    for read in (storage.read_below, storage.open_below):
        with pytest.raises(StorageError, match="is a named pipe"):
            read(str(folder), "pipe")
        with pytest.raises(IsADirectoryError):
            read(str(folder), "sub")
        with pytest.raises(FileNotFoundError):
            read(str(folder), "none")
        for path in ("../secret", "/etc/passwd", "a::b", "", "s3://b/x"):
            with pytest.raises(StorageError):
                read(str(folder), path)


def test_a_remote_folder_has_no_descriptors():
    assert storage.open_below(f"memory://{uuid.uuid4().hex}", "x") is None


NEW_FILES = """
import os, sys
sys.path.insert(0, sys.argv[1])
from genmod import storage
os.umask(int(sys.argv[3], 8))
storage.write_bytes(sys.argv[2] + "/written", b"1")
storage.create(sys.argv[2] + "/created", b"1")
"""


@pytest.mark.parametrize(("mask", "mode"), [("022", 0o644), ("077", 0o600), ("002", 0o664)])
def test_new_files_follow_the_umask(tmp_path, mask, mode):
    root = str(Path(storage.__file__).parents[2])
    subprocess.run([sys.executable, "-c", NEW_FILES, root, str(tmp_path), mask], check=True)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}
    assert len(list(tmp_path.iterdir())) == 2


def test_removing_a_link_leaves_its_target(folder):
    (folder / "link").symlink_to("../real2")
    storage.remove(str(folder / "link"))
    assert not os.path.lexists(folder / "link")
    (folder / "sub" / "link").symlink_to("../../real2")
    storage.remove(str(folder / "sub"))
    assert not (folder / "sub").exists()
    assert (folder.parent / "real2" / "x").read_bytes() == b"secret"


def test_reading_leaves_no_descriptor_open(tmp_path):
    (tmp_path / "x").write_bytes(b"content")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "out").symlink_to("/etc/passwd")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/", os.O_RDONLY)
    os.close(lowest)
    for _ in range(3):
        for read in READS.values():
            read(str(tmp_path / "x"))
            with pytest.raises(StorageError):
                read(str(tmp_path / "pipe"))
        storage.read_below(str(tmp_path), "x")
        for name in ("pipe", "out"):
            with pytest.raises(StorageError):
                storage.open_below(str(tmp_path), name)
    assert limit == resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = os.open("/", os.O_RDONLY)
    os.close(highest)
    assert highest == lowest
