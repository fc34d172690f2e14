"""A manifest from a shared store: bounded values, paths below its folder, nothing that cannot be."""

import json
import os
from contextlib import suppress

import numpy as np
import pytest

from genmod import storage
from genmod.config import fingerprint
from genmod.data.reading.reader import open_dataset, split_reader
from genmod.errors import DataError, GenmodError, StorageError
from genmod.manifest import (
    FileEntry,
    Manifest,
    claim,
    find_done,
    load_manifest,
    publish,
    read_checked,
    write_file,
)
from tests.builders import write_two_shards


@pytest.fixture
def dataset(tmp_path):
    """(folder, JSON of the manifest) of a dataset with 13 rows in two shards."""
    write_two_shards(str(tmp_path))
    return tmp_path, json.loads((tmp_path / "dataset.json").read_text())


def write(folder, content):
    """Write a manifest whose digest is right, as somebody with write access can."""
    content = {**content, "digest": ""}
    with suppress(ValueError):
        content["digest"] = fingerprint({k: v for k, v in content.items() if k != "digest"})
    text = json.dumps(content).replace('"many digits"', "1" * 5000)
    (folder / "dataset.json").write_text(text)


def change(content, path, value):
    *parents, last = path
    for name in parents:
        content = content[name]
    content[last] = value


HOSTILE = {
    "10^18 rows": (("shards", 0, "rows"), 10**18),
    "no rows": (("shards", 0, "rows"), 0),
    "a negative number of rows": (("shards", 0, "rows"), -7),
    "another number of rows": (("shards", 0, "rows"), 8),
    "a negative height": (("spec", "height"), -1),
    "a huge height": (("spec", "height"), 10**9),
    "a huge image": (("spec",), {"channels": 3, "height": 32768, "width": 32768}),
    "many classes": (("spec", "classes"), 10**12),
    "a negative size": (("shards", 0, "tar", "size_bytes"), -1),
    "a huge size": (("shards", 0, "tar", "size_bytes"), 10**18),
    "no digest": (("shards", 0, "tar", "sha256"), "0"),
    "a digest in capitals": (("shards", 0, "tar", "sha256"), "A" * 64),
    "an absolute path": (("shards", 0, "tar", "path"), "/etc/passwd"),
    "a path upwards": (("shards", 0, "index", "path"), "../x"),
    "an address": (("shards", 0, "tar", "path"), "http://169.254.169.254/latest/meta-data"),
    "a chain": (("shards", 0, "tar", "path"), "zip://a::b.zip"),
    "a shard twice": (("shards", 1), "copy of the first"),
    "a folder that is not named": (("shards", 0, "folder"), 1),
    "a folder anywhere": (("folders",), ["../../../../etc"]),
    "an absolute folder": (("folders",), ["/etc"]),
    "a class name with an escape": (("class_names",), ["a", "\x1b]0;x\x07"]),
    "another kind": (("kind",), "model"),
    "a newer format": (("format",), 99),
    "no format": (("format",), -1),
    "other counts": (("metadata", "splits", "train", "rows"), 12),
    "other counts by class": (("metadata", "splits", "train", "rows_K"), [13, 13]),
    "a negative sum": (("metadata", "splits", "train", "pixel_sum_C"), [-5]),
    "a sum that is too large": (("metadata", "splits", "train", "pixel_sum_C"), [10**30]),
    "too few squares": (("metadata", "splits", "train", "pixel_square_sum_C"), [1]),
    "no room for an index": (("metadata", "splits", "train", "next_index"), 3),
    "another mean": (("metadata", "stats", "mean"), [0.25]),
    "no deviation": (("metadata", "stats", "std"), [0.0]),
    "infinite statistics": (("metadata", "stats", "std"), [1e999]),
    "a long number": (("metadata", "version"), "many digits"),
    "another version": (("metadata", "version"), "two"),
    "statistics of another split": (("metadata", "splits", "north"), {}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_values_that_cannot_be_are_refused_before_a_file_is_read(dataset, name):
    folder, content = dataset
    path, value = HOSTILE[name]
    if value == "copy of the first":
        value = content["shards"][0]
    change(content, path, value)
    for file in (*folder.glob("*.tar"), *folder.glob("*.parquet")):
        file.unlink()
    write(folder, content)
    with pytest.raises(DataError, match=r"dataset\.json") as error:
        open_dataset(str(folder))
    assert "its own digest" not in str(error.value)
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


def test_a_manifest_with_the_right_digest_is_read(dataset):
    folder, content = dataset
    write(folder, content)
    assert open_dataset(str(folder)).rows("train") == 13


def test_a_manifest_that_is_too_large_is_not_read(dataset, monkeypatch):
    folder, _ = dataset
    with open(folder / "dataset.json", "r+b") as stream:
        stream.truncate(1 << 40)  # a sparse file
    with pytest.raises(DataError, match="longer than"):
        open_dataset(str(folder))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fingerprint": 1}', "\x00", "[" * 10_000])
def test_a_claim_that_is_none_is_one_error(tmp_path, text):
    claim(str(tmp_path), "f")
    (tmp_path / "claim.json").write_text(text)
    with pytest.raises(DataError, match=r"claim\.json"):
        find_done(Manifest, str(tmp_path), "model", "f")


def test_numbers_that_are_not_finite_are_not_published(tmp_path):
    for value in (float("nan"), float("inf")):
        manifest = Manifest(kind="model", fingerprint="f", metadata={"loss": [value]})
        with pytest.raises(GenmodError, match=r"model\.json was not written"):
            publish(str(tmp_path), manifest)
    assert load_manifest(Manifest, str(tmp_path), "model") is None


def test_a_file_is_not_read_beyond_its_size(tmp_path):
    entry = write_file(str(tmp_path), "weights", b"x" * 100)
    with open(tmp_path / "weights", "r+b") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(DataError, match="it is longer than 100 bytes; train again"):
        read_checked(str(tmp_path), entry, "train again")


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    folder = tmp_path / "model"
    entry = write_file(str(folder), "weights", b"secret")
    (folder / "weights").rename(tmp_path / "elsewhere")
    (folder / "weights").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="outside its folder"):
        read_checked(str(folder), entry, "train again")


def test_a_device_and_a_pipe_are_not_opened(dataset):
    folder, _ = dataset
    manifest = open_dataset(str(folder))
    for kind in ("pipe", "device"):
        tar = folder / manifest.shards[0].tar.path
        tar.unlink()
        if kind == "pipe":
            os.mkfifo(tar)
        else:
            tar.symlink_to("/dev/zero")
        with pytest.raises(StorageError):
            split_reader(str(folder), manifest, "train").read(np.arange(3))


def test_what_is_made_of_unchecked_inputs_says_so(tmp_path):
    manifest = Manifest(kind="model", fingerprint="f", metadata={"nimg": 1})
    assert publish(str(tmp_path / "a"), manifest).metadata == {"nimg": 1}
    storage.configure(storage.StorageConfig(check_digests=False))
    try:
        published = publish(str(tmp_path / "b"), manifest)
    finally:
        storage.configure(None)
    assert published.metadata == {"nimg": 1, "inputs_checked": False}
    assert load_manifest(Manifest, str(tmp_path / "b"), "model") == published


def test_a_dataset_that_did_not_grow_has_no_folders(dataset):
    """So its bytes and digest are those of before versions named folders."""
    _, content = dataset
    assert "folders" not in content
    assert all(set(shard) == {"split", "rows", "tar", "index"} for shard in content["shards"])
    entry = {"path": "a", "size_bytes": 1, "sha256": "0" * 64}
    assert FileEntry.model_validate(entry).model_dump() == entry
