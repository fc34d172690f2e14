"""A real S3 store: one winner, verified writes, ranges, transient and permanent faults."""

import os
import threading

import numpy as np
import pytest

from genmod import storage
from genmod.data.format.shards import ShardReceipt, quarantine_file
from genmod.data.sharding.finish import make_manifest
from genmod.data.sharding.ingest import make_shard
from genmod.data.sharding.plan import make_plan
from genmod.data.sources.config import DataConfig
from genmod.errors import ConfigError, DataError, StorageError, StoreUnavailable
from genmod.manifest import DatasetManifest, claim, load_manifest, publish
from genmod.receipts import load_receipts
from genmod.storage import s3
from genmod.storage.s3 import PART_BYTES, RANGE_BYTES
from tests.stores.proxy import Fault
from tests.stores.weed import BUCKET, client

LARGE = np.random.default_rng(1).bytes(2 * PART_BYTES + 12_345)

SMALL_PART = 5 << 20
"""The smallest part that S3 accepts."""

RETRYING = storage.StorageConfig(read_timeout_s=2, request_timeout_s=20, retry_timeout_s=600)
HURRY = storage.StorageConfig(read_timeout_s=20, request_timeout_s=30, retry_timeout_s=2)
"""Gives up soon, but waits for a busy machine's answers."""

IMPATIENT = storage.StorageConfig(read_timeout_s=0.5, request_timeout_s=1, retry_timeout_s=2)
SMALL = LARGE[: 2 * SMALL_PART + 1000]
"""Three parts, six blocks of :func:`small_blocks`."""


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(s3, "PART_BYTES", SMALL_PART)
    monkeypatch.setattr(s3, "RANGE_BYTES", 2 << 20)


def configure(monkeypatch, config):
    monkeypatch.setenv(
        storage.SETTINGS_VARIABLE, storage.environment_of(config)[storage.SETTINGS_VARIABLE]
    )


@pytest.mark.slow
def test_written_objects_are_read(s3_root):
    for data in (b"", b"one", LARGE[:RANGE_BYTES], LARGE[: RANGE_BYTES + 1], LARGE):
        url = storage.join(s3_root, "a", f"{len(data)}.bin")
        storage.write_bytes(url, b"other")
        storage.write_bytes(url, data)
        assert storage.read_bytes(url) == data
        assert storage.size_bytes(url) == len(data)
        assert storage.sha256_of(url) == storage.sha256(data)
        assert storage.exists(url)
    names = storage.list_names(storage.join(s3_root, "a"))
    assert names == sorted(f"{n}.bin" for n in (0, 3, RANGE_BYTES, RANGE_BYTES + 1, len(LARGE)))
    assert sorted(storage.walk_files(s3_root)) == [f"{s3_root}/a/{name}" for name in names]
    storage.remove(s3_root)
    assert storage.list_names(storage.join(s3_root, "a")) == []


def test_missing_objects(s3_root):
    for root in (s3_root, "s3://no-such-bucket/x"):
        assert not storage.exists(storage.join(root, "no"))
        assert storage.list_names(storage.join(root, "no")) == []
        storage.remove(storage.join(root, "no"))
        for read in (storage.read_bytes, storage.size_bytes, storage.sha256_of):
            with pytest.raises(FileNotFoundError):
                read(storage.join(root, "no"))


@pytest.mark.slow
def test_writes_of_another_process_are_seen(s3_root, store):
    folder = storage.join(s3_root, "seen")
    assert storage.list_names(folder) == []
    key = folder.removeprefix(f"s3://{BUCKET}/")
    client(store).put_object(Bucket=BUCKET, Key=f"{key}/new", Body=b"1")
    assert storage.list_names(folder) == ["new"]
    client(store).put_object(Bucket=BUCKET, Key=f"{key}/new", Body=b"22")
    assert storage.size_bytes(f"{folder}/new") == 2
    client(store).delete_object(Bucket=BUCKET, Key=f"{key}/new")
    assert not storage.exists(f"{folder}/new")


def test_one_of_many_creators_wins(s3_root):
    url, winners, start = f"{s3_root}/receipt", [], threading.Barrier(12)

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
    assert not storage.create(url, b"%d" % winners[0])


@pytest.mark.slow
def test_the_write_check_leaves_nothing(s3_root, store):
    storage.check_writable(s3_root)
    listing = client(store).list_objects_v2(
        Bucket=BUCKET, Prefix=s3_root.removeprefix(f"s3://{BUCKET}/")
    )
    assert listing["KeyCount"] == 0


def test_the_write_check_refuses_a_store_that_lets_two_writers_win(proxied_root, proxy):
    proxy.faults.append(Fault("unconditional", "PUT", times=2))
    with pytest.raises(StorageError, match="does not enforce create-if-absent") as error:
        storage.check_writable(proxied_root)
    assert "\n" not in str(error.value)
    assert proxy.injected == ["unconditional"] * 2


def test_the_write_check_refuses_wrong_and_missing_credentials(s3_root, store, monkeypatch):
    from s3fs import S3FileSystem

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match="cannot be written") as error:
        storage.check_writable(s3_root)
    assert "x" * 40 not in str(error.value)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match="no credentials"):
        storage.check_writable(s3_root)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/x",
        "https://me:secret@host/data.tar",
        "https://b.s3.amazonaws.com/x?X-Amz-Expires=60&X-Amz-Signature=secret",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url):
    for read in (storage.resolve, storage.read_bytes):
        with pytest.raises(StorageError, match="contains credentials") as error:
            read(url)
        assert "secret" not in str(error.value)


def test_ranges(proxied_root, proxy):
    url = f"{proxied_root}/object"
    storage.write_bytes(url, LARGE)
    proxy.requests.clear()
    offsets = [9_000_000, 5, 100_000, 0, len(LARGE) - 4, 3 * len(LARGE)]
    lengths = [1_000, 10, 0, 7, 8, 5]
    expected = [LARGE[o : o + n] for o, n in zip(offsets, lengths, strict=True)]
    assert storage.read_ranges(url, offsets, lengths) == expected
    spans = {span for method, _, span in proxy.requests if method == "GET"}
    assert "bytes=0-14" in spans  # close ranges are read together
    assert "bytes=9000000-9000999" in spans
    assert {method for method, _, _ in proxy.requests} == {"GET"}


def test_large_objects_are_written_in_parts_and_read_in_blocks(proxied_root, proxy):
    url = f"{proxied_root}/large"
    storage.write_bytes(url, LARGE)
    assert sum("partNumber" in path for _, path, _ in proxy.requests) == 3
    proxy.requests.clear()
    assert storage.read_bytes(url) == LARGE
    assert sum(method == "GET" for method, _, _ in proxy.requests) == -(-len(LARGE) // RANGE_BYTES)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["flipped", "partNumber=2"])
def test_a_store_that_contains_other_bytes_is_an_error(proxied_root, proxy, small_blocks, part):
    url = f"{proxied_root}/flipped"
    data = SMALL if "Number" in part else SMALL[:1000]
    proxy.faults.append(Fault("flip", "PUT", part))
    with pytest.raises(StorageError, match="other bytes than were written"):
        storage.write_bytes(url, data)
    assert proxy.injected == ["flip"]
    storage.write_bytes(url, data)
    assert storage.read_bytes(url) == data


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["500", "503", "refuse", "lose", "cut", "silence"])
def test_transient_faults_are_retried(proxied_root, proxy, small_blocks, monkeypatch, kind):
    configure(monkeypatch, RETRYING)
    url = f"{proxied_root}/object"
    for method, part in (("PUT", "partNumber=2"), ("POST", "uploads"), ("POST", "uploadId")):
        proxy.faults.append(Fault(kind, method, part))
    storage.write_bytes(url, SMALL)
    proxy.faults += [Fault(kind, "GET", "/object", times=2), Fault(kind, "GET", "list-type")]
    assert storage.read_bytes(url) == SMALL
    assert storage.list_names(proxied_root) == ["object"]
    proxy.faults.append(Fault(kind, "GET", "/object"))
    assert storage.read_ranges(url, [10, 9_000_000], [5, 5]) == [
        SMALL[10:15],
        SMALL[9_000_000:][:5],
    ]
    assert len(proxy.injected) == 7


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["500", "refuse", "lose", "silence"])
def test_the_winner_wins_although_the_answer_was_lost(proxied_root, proxy, monkeypatch, kind):
    configure(monkeypatch, RETRYING)
    url = f"{proxied_root}/receipt"
    proxy.faults.append(Fault(kind, "PUT", "/receipt", times=2))
    assert storage.create(url, b"mine")
    assert proxy.injected == [kind] * 2
    proxy.faults.append(Fault(kind, "PUT", "/receipt"))
    assert not storage.create(url, b"mine")


@pytest.mark.slow
def test_a_slow_answer_is_requested_again(proxied_root, proxy, monkeypatch):
    configure(
        monkeypatch,
        storage.StorageConfig(read_timeout_s=2, request_timeout_s=5, retry_timeout_s=600),
    )
    url = f"{proxied_root}/slow"
    storage.write_bytes(url, SMALL[:5000])  # takes minutes, but is never silent
    proxy.faults.append(Fault("trickle", "GET", "/slow"))
    assert storage.read_bytes(url) == SMALL[:5000]
    assert proxy.injected == ["trickle"]
    assert len([method for method, _, _ in proxy.requests if method == "GET"]) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["500", "refuse", "trickle", "silence"])
def test_a_permanent_fault_is_one_line(proxied_root, proxy, monkeypatch, kind):
    url = f"{proxied_root}/never"
    storage.write_bytes(url, SMALL[:1000])
    configure(monkeypatch, IMPATIENT)
    proxy.faults.append(Fault(kind, times=10_000))
    with pytest.raises(StoreUnavailable, match="stayed unavailable") as error:
        storage.read_bytes(url)
    assert isinstance(error.value, OSError)
    assert "\n" not in str(error.value)


def test_an_unavailable_root_cannot_be_written(proxied_root, proxy, monkeypatch):
    configure(monkeypatch, IMPATIENT)
    proxy.faults.append(Fault("refuse", times=10_000))
    with pytest.raises(StorageError, match="cannot be written") as error:
        storage.check_writable(proxied_root)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_failed_upload_leaves_nothing(proxied_root, proxy, small_blocks, monkeypatch, store):
    configure(monkeypatch, HURRY)
    proxy.faults.append(Fault("500", "PUT", "partNumber=3", times=10_000))
    with pytest.raises(StoreUnavailable):
        storage.write_bytes(f"{proxied_root}/half", SMALL)
    prefix = proxied_root.removeprefix(f"s3://{BUCKET}/")
    assert client(store).list_objects_v2(Bucket=BUCKET, Prefix=prefix)["KeyCount"] == 0
    left = client(store).list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    assert [upload["Key"] for upload in left if upload["Key"].startswith(prefix)] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["500", "refuse", "lose"])
def test_a_dataset_is_made_whole_while_every_second_request_fails(proxied_root, proxy, kind):
    proxy.every, proxy.cycle = 2, (kind,)
    plan = make_plan(DataConfig(source="builtin:digits", shard_rows=900), seed=0)
    storage.check_writable(proxied_root)
    claim(proxied_root, plan.fingerprint)
    made = [make_shard(plan.job(planned, proxied_root)) for planned in plan.shards]
    names = [planned.name for planned in plan.shards]
    receipts = load_receipts(ShardReceipt, proxied_root, names, plan.fingerprint)
    assert [receipts[name] for name in names] == made
    quarantine = quarantine_file(proxied_root, [])
    manifest = publish(proxied_root, make_manifest(plan, proxied_root, made, quarantine))
    assert load_manifest(DatasetManifest, proxied_root, "dataset") == manifest
    assert sum(shard.rows for shard in manifest.shards) == 1797
    assert len(proxy.injected) >= 10


def test_settings_travel_in_the_environment(monkeypatch):
    cache = storage.CacheConfig(folder="/x", size_bytes=5)
    config = storage.StorageConfig(retry_timeout_s=3, cache=cache)
    monkeypatch.delenv(storage.SETTINGS_VARIABLE, raising=False)
    assert storage.settings() == storage.StorageConfig()
    assert storage.settings_environment() == {}
    monkeypatch.setattr(os, "environ", os.environ | dict(storage.environment_of(config)))
    assert storage.settings() == config
    assert storage.settings_environment() == storage.environment_of(config)


def test_a_command_configures_its_process_without_the_environment(monkeypatch):
    monkeypatch.delenv(storage.SETTINGS_VARIABLE, raising=False)
    config = storage.StorageConfig(retry_timeout_s=3)
    before = dict(os.environ)
    storage.configure(config)
    try:
        assert storage.settings() == config
        assert storage.settings_environment() == storage.environment_of(config)
        assert os.environ == before
    finally:
        storage.configure(None)
    assert storage.settings() == storage.StorageConfig()


def test_wrong_settings_in_the_environment_name_the_variable(monkeypatch):
    monkeypatch.setenv(storage.SETTINGS_VARIABLE, '{"retry_timeout_s": -1}')
    with pytest.raises(ConfigError, match=r"GENMOD_STORAGE: retry_timeout_s: .* greater than 0"):
        storage.settings()


def test_a_store_that_sends_more_than_was_asked_is_an_error(proxied_root, proxy):
    url = f"{proxied_root}/object"
    storage.write_bytes(url, LARGE)
    for read in (storage.read_bytes, lambda url: storage.read_ranges(url, [5], [10])):
        proxy.faults.append(Fault("whole", "GET"))
        with pytest.raises(StorageError, match="more bytes than were asked for"):
            read(url)
    assert proxy.injected == ["whole"] * 2
    with pytest.raises(DataError, match="longer than 10,000,000 bytes"):
        storage.read_bytes(url, 10_000_000)


def test_a_denied_request_names_the_object(s3_root, monkeypatch):
    from s3fs import S3FileSystem

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    S3FileSystem.clear_instance_cache()
    with pytest.raises(PermissionError, match=f"^{s3_root}/x: "):
        storage.read_bytes(f"{s3_root}/x")
    S3FileSystem.clear_instance_cache()
