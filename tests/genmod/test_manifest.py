"""Work is done if its manifest exists, is unchanged, and has the same fingerprint."""

import json

import pytest

from genmod import manifest as m
from genmod import storage
from genmod.errors import ConfigError, DataError


def make(fingerprint="f" * 64, **metadata):
    return m.Manifest(kind="model", fingerprint=fingerprint, metadata=metadata)


def test_publish_then_find(tmp_path):
    root = str(tmp_path)
    assert m.find_done(m.Manifest, root, "model", "f" * 64) is None
    published = m.publish(root, make(nimg=5))
    assert published.is_whole()
    assert m.find_done(m.Manifest, root, "model", "f" * 64) == published


def test_another_fingerprint_is_refused_and_kept(tmp_path):
    root = str(tmp_path)
    first = m.publish(root, make())
    with pytest.raises(ConfigError, match="made from other inputs"):
        m.find_done(m.Manifest, root, "model", "0" * 64)
    with pytest.raises(ConfigError, match="made from other inputs"):
        m.publish(root, make("0" * 64))
    assert m.load_manifest(m.Manifest, root, "model") == first


def test_a_second_writer_gets_the_first_manifest(tmp_path):
    first = m.publish(str(tmp_path), make(seconds=1))
    assert m.publish(str(tmp_path), make(seconds=2)) == first


def test_work_in_progress_is_claimed(tmp_path):
    root = str(tmp_path)
    m.claim(root, "a" * 64)
    m.claim(root, "a" * 64)
    assert m.find_done(m.Manifest, root, "model", "a" * 64) is None
    with pytest.raises(ConfigError, match="being filled"):
        m.find_done(m.Manifest, root, "model", "b" * 64)
    with pytest.raises(ConfigError, match="claimed"):
        m.claim(root, "b" * 64)


@pytest.mark.parametrize("damage", ["truncate", "edit", "newer", "unknown"])
def test_an_invalid_manifest_is_refused(tmp_path, damage):
    root = str(tmp_path)
    m.publish(root, make(nimg=5))
    path = tmp_path / "model.json"
    text = path.read_text()
    tree = json.loads(text)
    if damage == "truncate":
        path.write_text(text[:-20])
    else:
        change = {"edit": {"metadata": {"nimg": 6}}, "newer": {"format": 99}, "unknown": {"x": 1}}
        path.write_text(json.dumps(tree | change[damage]))
    with pytest.raises(DataError, match=r"model\.json"):
        m.load_manifest(m.Manifest, root, "model")


def test_a_missing_manifest_names_the_stage_that_writes_it(tmp_path):
    with pytest.raises(ConfigError, match="genmod train"):
        m.require(m.Manifest, str(tmp_path), "model", "train")


def test_problems_name_the_file(tmp_path):
    root = str(tmp_path)
    good, short, changed, gone = (
        m.write_file(root, name, b"bytes of " + name.encode()) for name in "abcd"
    )
    storage.write_bytes(str(tmp_path / "b"), b"x")
    storage.write_bytes(str(tmp_path / "c"), b"bytes OF c")
    storage.remove(str(tmp_path / "d"))
    problems = m.find_problems(root, [good, short, changed, gone])
    assert [text.split("/")[-1] for text in problems] == [
        "b: 1 bytes, expected 10",
        f"c: its sha256 is not {changed.sha256[:12]}…",
        "d: missing",
    ]


def test_the_spec_describes_its_size():
    spec = m.ImageSpec(channels=3, height=4, width=5, classes=2)
    assert spec.shape == (3, 4, 5)
    assert spec.dims == 60
    assert str(spec) == "3x4x5, 256 levels, 2 classes"


def test_class_names_must_fit_the_number_of_classes():
    entry = m.FileEntry(path="a", size_bytes=1, sha256="0" * 64)
    index = entry.model_copy(update={"path": "b"})
    shard = m.ShardEntry(split="train", rows=1, tar=entry, index=index)
    spec = m.ImageSpec(channels=1, height=2, width=2, classes=2)
    good = {"fingerprint": "f" * 64, "spec": spec, "shards": (shard,), "class_names": ("x", "y")}
    assert m.DatasetManifest(**good).rows("train") == 1
    with pytest.raises(ValueError, match="1 class names, 2 classes"):
        m.DatasetManifest(**good | {"class_names": ("x",)})


@pytest.mark.parametrize("damage", ["missing", "changed", "unlisted"])
def test_a_file_is_read_only_if_it_matches_its_manifest(tmp_path, damage):
    root, url = str(tmp_path), str(tmp_path / "a")
    manifest = make().model_copy(update={"files": (m.write_file(root, "a", b"content"),)})
    assert m.read_listed(root, manifest, "a", "run again") == b"content"
    path = "a"
    if damage == "missing":
        storage.remove(url)
    elif damage == "changed":
        storage.write_bytes(url, b"contents")
    else:
        path = "b"
    with pytest.raises(DataError, match=r"missing|does not match its digest|lists no b") as error:
        m.read_listed(root, manifest, path, "run again")
    assert str(error.value).endswith("; run again")
