"""The node's cache: one fetch for many processes, never over its limit, intact after SIGKILL."""

import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from genmod import storage
from genmod.data.reading.tar_files import TarFiles
from genmod.errors import DataError
from genmod.manifest import FileEntry, ShardEntry, StoredShard
from genmod.storage.cache import Cache, open_copy
from genmod.storage.cache_folder import is_copy
from genmod.storage.objects import PENDING
from tests.stores.proxy import Fault

SIZE = 300_000
CONTENTS = [np.random.default_rng(k).bytes(SIZE) for k in range(8)]


@pytest.fixture
def urls(proxied_root):
    """Eight objects in the store."""
    names = [f"{proxied_root}/{k}.tar" for k in range(len(CONTENTS))]
    for url, data in zip(names, CONTENTS, strict=True):
        storage.write_bytes(url, data)
    return names


@pytest.fixture
def cache(tmp_path):
    return cache_of(tmp_path, 3.5)


def cache_of(folder, objects):
    """A cache that this many of the objects fit into."""
    config = storage.CacheConfig(folder=str(folder / "cache"), size_bytes=int(objects * SIZE))
    return Cache(config)


def fetch(cache, urls, k):
    return cache.open(urls[k], storage.sha256(CONTENTS[k]), SIZE)


def own(cache):
    """The cache's own folder."""
    return Path(cache.config.folder) / "genmod-cache"


def contents(cache):
    """Numbers of the complete copies, and the size of all copies."""
    files = [path for path in own(cache).iterdir() if path.name not in (".lock", ".genmod-cache")]
    digests = [storage.sha256(data) for data in CONTENTS]
    complete = [digests.index(path.name) for path in files if not path.name.startswith(PENDING)]
    for k in complete:
        assert (own(cache) / digests[k]).read_bytes() == CONTENTS[k]
    return sorted(complete), sum(path.stat().st_size for path in files)


def gets(proxy):
    return [path for method, path, _ in proxy.requests if method == "GET"]


def test_an_object_is_fetched_once(urls, cache, proxy):
    proxy.requests.clear()
    for _ in range(3):
        handle = fetch(cache, urls, 0)
        assert os.pread(handle, SIZE + 1, 0) == CONTENTS[0]
        os.close(handle)
    assert len(gets(proxy)) == 1


def test_least_recently_used_copies_are_evicted_and_copies_in_use_stay(urls, cache):
    first = fetch(cache, urls, 0)
    for k in (1, 2, 1, 3):
        os.close(fetch(cache, urls, k))
        assert contents(cache)[1] <= cache.config.size_bytes
    assert contents(cache)[0] == [0, 1, 3]
    second, third = fetch(cache, urls, 4), fetch(cache, urls, 5)
    assert contents(cache)[0] == [0, 4, 5]
    assert fetch(cache, urls, 6) is None  # all copies are in use
    assert [os.pread(h, SIZE, 0) for h in (first, second, third)] == [
        CONTENTS[k] for k in (0, 4, 5)
    ]
    os.close(second)
    os.close(fetch(cache, urls, 6))
    assert contents(cache)[0] == [0, 5, 6]
    os.close(first)
    os.close(third)


def test_an_object_with_another_digest_is_not_kept(urls, cache):
    with pytest.raises(DataError, match="does not match its digest"):
        cache.open(urls[0], storage.sha256(b"other"), SIZE)
    for size in (SIZE - 1, SIZE + 1):
        with pytest.raises(DataError, match=r"digest|longer"):
            cache.open(urls[0], storage.sha256(CONTENTS[0]), size)
    with pytest.raises(FileNotFoundError):
        cache.open(urls[0] + "x", storage.sha256(CONTENTS[0]), SIZE)
    assert contents(cache) == ([], 0)


def test_a_truncated_copy_is_fetched_again(urls, cache):
    os.close(fetch(cache, urls, 0))
    os.truncate(own(cache) / storage.sha256(CONTENTS[0]), 5)
    handle = fetch(cache, urls, 0)
    assert os.pread(handle, SIZE, 0) == CONTENTS[0]
    os.close(handle)


def test_an_unusable_folder_is_not_used(urls, tmp_path, caplog):
    (tmp_path / "cache").write_text("not a folder")
    assert fetch(cache_of(tmp_path, 3), urls, 0) is None
    assert "is not used" in caplog.text


CHILD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from genmod import storage
from genmod.storage.cache import Cache
folder, size, rounds, seed = sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
objects = [text.split("=") for text in sys.argv[6:]]
cache = Cache(storage.CacheConfig(folder=folder, size_bytes=size))
print("ready", flush=True)
for n in range(rounds):
    url, digest = objects[(seed + n * (2 * seed + 1)) % len(objects)]
    handle = cache.open(url, digest, 300_000)
    if handle is not None:
        assert storage.sha256(os.pread(handle, 300_001, 0)) == digest
        os.close(handle)
print("done", flush=True)
"""


def start(cache, urls, rounds, seed):
    pairs = [f"{url}={storage.sha256(data)}" for url, data in zip(urls, CONTENTS, strict=True)]
    words = [cache.config.folder, str(cache.config.size_bytes), str(rounds), str(seed)]
    root = str(Path(storage.__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), root, *words, *pairs],
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    assert out.split()[-1] == "done"


@pytest.mark.slow
def test_processes_share_the_cache_and_read_the_right_bytes(urls, tmp_path):
    cache = cache_of(tmp_path, 2.5)
    processes = [start(cache, urls, 60, seed) for seed in range(3)]
    most = 0
    while any(process.poll() is None for process in processes):
        most = max(most, size_of(cache))
        time.sleep(0.005)
    for process in processes:
        finish(process)
    assert 0 < most <= cache.config.size_bytes
    assert len(contents(cache)[0]) == 2


def size_of(cache):
    """Size of all copies, measured under the lock."""
    if not own(cache).exists():
        return 0
    with open(own(cache) / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return sum(path.stat().st_size for path in own(cache).iterdir() if is_copy(path.name))


def test_the_cache_is_intact_after_sigkill(urls, tmp_path, proxy):
    cache = cache_of(tmp_path, 2)
    pending = own(cache) / f"{PENDING}{storage.sha256(CONTENTS[0])}"
    proxy.faults.append(Fault("trickle", "GET", "/0.tar"))
    process = start(cache, urls, 1, 0)
    end_s = time.monotonic() + 60
    while not (pending.exists() and proxy.injected):
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert fetch(cache, urls, 1) is not None  # next to the pending copy
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert pending.exists()
    handle = fetch(cache, urls, 0)
    assert os.pread(handle, SIZE, 0) == CONTENTS[0]
    assert not pending.exists()
    assert contents(cache) == ([0, 1], 2 * SIZE)
    os.close(handle)


@pytest.mark.slow
def test_sigkill_at_any_time_leaves_the_cache_intact(urls, tmp_path):
    cache = cache_of(tmp_path, 2.5)
    for n in range(4):
        process = start(cache, urls, 100_000, n)
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1 + 0.13 * n)
        process.kill()
        process.wait(60)
        assert size_of(cache) <= cache.config.size_bytes
        contents(cache)
    finish(start(cache, urls, 20, 5))
    assert len(contents(cache)[0]) == 2
    assert not list(own(cache).glob(f"{PENDING}*"))


def test_the_reader_uses_the_cache_and_reads_other_files_by_range(urls, cache, proxy, monkeypatch):
    config = storage.StorageConfig(cache=cache.config)
    for name, value in storage.environment_of(config).items():
        monkeypatch.setenv(name, value)
    entries = [
        FileEntry(path=f"{k}.tar", size_bytes=SIZE, sha256=storage.sha256(data))
        for k, data in enumerate(CONTENTS)
    ]
    index = FileEntry(path="i", size_bytes=0, sha256="0" * 64)
    tars = TarFiles(
        [
            StoredShard(
                ShardEntry(split="val", rows=1, tar=tar, index=index), url.rpartition("/")[0]
            )
            for url, tar in zip(urls, entries, strict=True)
        ]
    )
    proxy.requests.clear()
    for _ in range(2):
        for k, data in enumerate(CONTENTS):
            assert tars.read([k, k], [5, 200_000], [7, 9]) == [
                data[5:12],
                data[200_000:200_009],
            ]
    spans = [span for method, _, span in proxy.requests if method == "GET"]
    assert (
        len(spans) == 3 + 2 * 2 * 5
    )  # three copies that stay in use; five tars, two rounds, two ranges
    tars.close()
    assert open_copy(urls[7], entries[7].sha256, 10 * SIZE) is None  # larger than the whole cache
    assert contents(cache)[0] == [0, 1, 2]
