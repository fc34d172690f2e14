"""Done means: its manifest is there, whole, and made from this."""

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


def test_second_writer_gets_the_first_ones_manifest(tmp_path):
    first = m.publish(str(tmp_path), make(seconds=1))
    assert m.publish(str(tmp_path), make(seconds=2)) == first


def test_work_under_way_is_claimed(tmp_path):
    root = str(tmp_path)
    m.claim(root, "a" * 64)
    m.claim(root, "a" * 64)
    assert m.find_done(m.Manifest, root, "model", "a" * 64) is None
    with pytest.raises(ConfigError, match="being filled"):
        m.find_done(m.Manifest, root, "model", "b" * 64)
    with pytest.raises(ConfigError, match="claimed"):
        m.claim(root, "b" * 64)


@pytest.mark.parametrize("damage", ["truncate", "edit", "newer", "unknown"])
def test_a_broken_manifest_is_not_believed(tmp_path, damage):
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


def test_absence_names_the_stage_that_makes_it(tmp_path):
    with pytest.raises(ConfigError, match="genmod train"):
        m.require(m.Manifest, str(tmp_path), "model", "train")


def test_faults_name_the_file(tmp_path):
    root = str(tmp_path)
    good, short, changed, gone = (
        m.write_file(root, name, b"bytes of " + name.encode()) for name in "abcd"
    )
    storage.write_bytes(str(tmp_path / "b"), b"x")
    storage.write_bytes(str(tmp_path / "c"), b"bytes OF c")
    storage.remove(str(tmp_path / "d"))
    found = m.find_problems(root, [good, short, changed, gone])
    assert [text.split("/")[-1] for text in found] == [
        "b: 1 bytes, expected 10",
        f"c: its sha256 is not {changed.sha256[:12]}…",
        "d: missing",
    ]


def test_the_spec_says_its_size():
    spec = m.ImageSpec(channels=3, height=4, width=5, classes=2)
    assert spec.shape == (3, 4, 5)
    assert spec.dims == 60
    assert str(spec) == "3x4x5, 256 levels, 2 classes"


def test_a_dataset_with_other_names_than_classes_is_none():
    entry = m.FileEntry(path="a", size_bytes=1, sha256="0" * 64)
    shard = m.ShardEntry(split="train", rows=1, tar=entry, index=entry)
    spec = m.ImageSpec(channels=1, height=2, width=2, classes=2)
    good = {"fingerprint": "f" * 64, "spec": spec, "shards": (shard,), "class_names": ("x", "y")}
    assert m.DatasetManifest(**good).rows("train") == 1
    with pytest.raises(ValueError, match="1 class names, 2 classes"):
        m.DatasetManifest(**good | {"class_names": ("x",)})
