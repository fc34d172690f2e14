"""The cache touches its own files alone, and no copy is read that its disk has changed."""

import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import numpy as np
import pytest

from genmod import storage
from genmod.errors import ConfigError, DataError
from genmod.storage.cache import Cache
from genmod.storage.cache_folder import check_folder
from pipelines.cli import main

SIZE = 10_000
CONTENTS = [np.random.default_rng(k).bytes(SIZE) for k in range(6)]
DIGESTS = [storage.sha256(data) for data in CONTENTS]


@pytest.fixture
def urls():
    root = f"memory://{uuid.uuid4().hex}"
    names = [f"{root}/{k}.tar" for k in range(len(CONTENTS))]
    for url, data in zip(names, CONTENTS, strict=True):
        storage.write_bytes(url, data)
    return names


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


@pytest.fixture
def cache(folder):
    """A cache that two of the objects fit into."""
    return Cache(storage.CacheConfig(folder=str(folder), size_bytes=2 * SIZE + SIZE // 2))


def read(cache, url, digest):
    handle = cache.open(url, digest, SIZE)
    if handle is None:
        return None
    with open(handle, "rb") as stream:
        return stream.read()


def foreign_files(folder):
    """Files of other programs, some with names like the cache's own."""
    names = ["photo.png", "f" * 64, f".pending-{'e' * 64}", ".pending-x", "sub"]
    for name in names[:-1]:
        (folder / name).write_bytes(b"precious" * 1000)
        os.utime(folder / name, (1, 1))  # the least recently used of all
    (folder / "sub").mkdir()
    return names


def test_files_of_others_survive_eviction(cache, folder, urls):
    names = foreign_files(folder)
    for _ in range(2):
        for url, digest, data in zip(urls, DIGESTS, CONTENTS, strict=True):
            assert read(cache, url, digest) == data
    assert [(folder / name).read_bytes() for name in names[:-1]] == [b"precious" * 1000] * 4
    assert sorted(os.listdir(folder)) == sorted([*names, "genmod-cache"])


def test_only_names_that_the_cache_generates_are_counted_or_removed(cache, folder, urls, tmp_path):
    assert read(cache, urls[0], DIGESTS[0]) == CONTENTS[0]
    own = folder / "genmod-cache"
    (tmp_path / "outside").write_bytes(b"precious" * 10_000)
    (own / "notes.txt").write_bytes(b"precious" * 10_000)
    (own / ("a" * 64)).symlink_to(tmp_path / "outside")
    (own / ("b" * 64)).mkdir()
    (own / f".pending-{'c' * 64}").symlink_to(tmp_path / "outside")
    os.mkfifo(own / ("d" * 64))
    before = set(os.listdir(own)) - set(DIGESTS)
    for url, digest, data in zip(urls, DIGESTS, CONTENTS, strict=True):
        assert read(cache, url, digest) == data
    assert set(os.listdir(own)) - set(DIGESTS) == before
    assert len(set(os.listdir(own)) & set(DIGESTS)) == 2  # the foreign bytes do not count
    assert (tmp_path / "outside").read_bytes() == b"precious" * 10_000
    assert (own / "notes.txt").read_bytes() == b"precious" * 10_000


@pytest.mark.parametrize("make", ["link", "folder", "fifo"])
def test_a_name_of_the_cache_that_another_program_took_is_not_read(
    cache, folder, urls, tmp_path, caplog, make
):
    assert read(cache, urls[0], DIGESTS[0]) == CONTENTS[0]
    taken = folder / "genmod-cache" / DIGESTS[1]
    (tmp_path / "other").write_bytes(CONTENTS[1])
    actions = {
        "link": lambda: taken.symlink_to(tmp_path / "other"),
        "folder": taken.mkdir,
        "fifo": lambda: os.mkfifo(taken),
    }
    actions[make]()
    assert read(cache, urls[1], DIGESTS[1]) is None
    assert "is not used" in caplog.text
    assert os.path.lexists(taken)


def test_the_folder_and_the_copies_are_private(cache, folder, urls):
    read(cache, urls[0], DIGESTS[0])
    own = folder / "genmod-cache"
    assert own.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in own.iterdir()} == {0o600}
    assert sorted(os.listdir(own)) == sorted([".genmod-cache", ".lock", DIGESTS[0]])


@pytest.mark.parametrize("name", ["../../x", "x", "", "A" * 64, f"{'a' * 64}\n", "a/b"])
def test_a_digest_that_is_none_never_names_a_file(cache, folder, urls, name):
    with pytest.raises(DataError, match="64 lowercase hex digits") as error:
        cache.open(urls[0], name, SIZE)
    assert "\n" not in str(error.value)
    assert os.listdir(folder) == []


def test_a_damaged_copy_is_fetched_again_and_not_blamed_on_the_store(cache, folder, urls, caplog):
    assert read(cache, urls[0], DIGESTS[0]) == CONTENTS[0]
    flip_a_bit(folder / "genmod-cache" / DIGESTS[0])
    assert read(cache, urls[0], DIGESTS[0]) == CONTENTS[0]
    assert f"the cached copy of {urls[0]} was damaged on this disk" in caplog.text
    storage.write_bytes(urls[1], b"x" * SIZE)
    with pytest.raises(DataError, match="does not match its digest"):
        read(cache, urls[1], DIGESTS[1])


def flip_a_bit(path, keep_time=False):
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[SIZE // 2] ^= 1
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


OPEN = """
import os, sys
sys.path.insert(0, sys.argv[1])
from genmod import storage
from genmod.storage.cache import Cache
cache = Cache(storage.CacheConfig(folder=sys.argv[2], size_bytes=25_000))
storage.write_bytes("memory://again/0.tar", sys.stdin.buffer.read())
handle = cache.open("memory://again/0.tar", sys.argv[3], 10_000)
sys.exit(0 if storage.sha256(os.pread(handle, 20_000, 0)) == sys.argv[3] else 1)
"""


def test_each_process_checks_a_copy_once(cache, folder, urls):
    assert read(cache, urls[0], DIGESTS[0]) == CONTENTS[0]
    flip_a_bit(folder / "genmod-cache" / DIGESTS[0], keep_time=True)
    assert read(cache, urls[0], DIGESTS[0]) != CONTENTS[0]  # checked before: not read again
    root = os.path.dirname(os.path.dirname(os.path.dirname(storage.__file__)))
    words = [sys.executable, "-c", OPEN, root, str(folder), DIGESTS[0]]
    done = subprocess.run(words, input=CONTENTS[0], check=False, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"was damaged on this disk" in done.stderr


def unmarked(folder):
    (folder / "genmod-cache").mkdir()
    (folder / "genmod-cache" / ("a" * 64)).write_bytes(b"precious")
    return "was not made by genmod"


def link(folder):
    (folder / "elsewhere").mkdir()
    (folder / "genmod-cache").symlink_to(folder / "elsewhere")
    return "is a link"


def a_file(folder):
    folder.rmdir()
    folder.write_text("not a folder")
    return "is not a folder"


def foreign_content(folder):
    made(folder)
    (folder / "genmod-cache" / "notes.txt").write_bytes(b"precious")
    return "contains notes.txt, which genmod did not write"


def linked_copy(folder):
    made(folder)
    (folder / "genmod-cache" / ("a" * 64)).symlink_to("/etc/passwd")
    return "which genmod did not write"


def writable_by_others(folder):
    made(folder)
    (folder / "genmod-cache").chmod(0o777)
    return "can be written by other users"


def of_another_user(folder):
    made(folder)
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    os.chown(folder / "genmod-cache", 12345, 12345)
    return "belongs to another user"


def made(folder):
    url = f"memory://{uuid.uuid4().hex}/0.tar"
    storage.write_bytes(url, CONTENTS[0])
    cache = Cache(storage.CacheConfig(folder=str(folder), size_bytes=2 * SIZE))
    assert read(cache, url, DIGESTS[0]) == CONTENTS[0]


@pytest.mark.parametrize(
    "break_folder",
    [
        unmarked,
        link,
        a_file,
        foreign_content,
        linked_copy,
        writable_by_others,
        of_another_user,
    ],
)
def test_a_foreign_folder_is_refused_before_any_work(break_folder, folder, tmp_path, capsys):
    reason = break_folder(folder)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    words = ["run", "--recipe", "quickstart", "--dry-run", "--set", f"root={tmp_path / 'root'}"]
    cache = f"storage.cache={{folder: {folder}, size_bytes: 100}}"
    try:
        assert main([*words, "--set", cache]) == 2
    finally:
        storage.configure(None)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "storage.cache.folder: " in error
    assert reason in error
    assert "set storage.cache.folder to another folder" in error
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("break_folder", [unmarked, link, writable_by_others, of_another_user])
def test_a_worker_reads_without_a_cache_in_a_foreign_folder(break_folder, cache, folder, caplog):
    break_folder(folder)
    before = sorted(os.listdir(folder / "genmod-cache"))
    assert cache.open("memory://none", DIGESTS[1], SIZE) is None
    assert "is not used" in caplog.text
    assert sorted(os.listdir(folder / "genmod-cache")) == before


def test_a_good_folder_is_accepted_and_nothing_is_made(folder, tmp_path):
    for path in (folder, tmp_path / "no" / "such"):
        config = storage.CacheConfig(folder=str(path), size_bytes=100)
        check_folder(config)
    assert sorted(os.listdir(tmp_path)) == ["shared"]
    made(folder)
    check_folder(config)
    for name in ("~nobody-has-this-name/x", "x" * 300):
        with pytest.raises(ConfigError, match=r"storage\.cache\.folder: .*set storage"):
            check_folder(storage.CacheConfig(folder=name, size_bytes=100))
        cache = Cache(storage.CacheConfig(folder=name, size_bytes=100))
        assert cache.open("memory://none", "a" * 64, 5) is None


def test_a_folder_that_this_user_cannot_write_is_refused():
    """Root may write everywhere, so root asks as another user."""
    for make in (
        lambda base: None,
        lambda base: made(base) or os.chmod(base / "genmod-cache", 0o500),
    ):
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder))
            os.chmod(folder, 0o555)
            process = os.fork()
            if process == 0:
                os._exit(exit_code_of_check(folder))
            assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 7
            os.chmod(folder, 0o755)


def exit_code_of_check(folder):
    try:
        if os.geteuid() == 0:
            for path in Path(folder).rglob("*"):
                os.chown(path, 65534, 65534)
            os.setuid(65534)
        check_folder(storage.CacheConfig(folder=folder, size_bytes=100))
    except ConfigError as error:
        return 7 if "is not writable" in str(error) else 2
    except BaseException:
        return 1
    return 0
