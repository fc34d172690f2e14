"""Every change to a dataset or a model folder is found and named."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from genmod.data.shards import Row, dataset_facts, quarantine_file, write_shard
from genmod.manifest import DatasetManifest, ImageSpec, Manifest, claim, publish, write_file
from pipelines.verify import verify


@pytest.fixture
def root(tmp_path):
    """A dataset of two shards below data/, and a model."""
    spec = ImageSpec(channels=1, height=4, width=4, classes=2)
    data = str(tmp_path / "data")
    shards, facts = [], []
    for number in range(2):
        rows = (
            Row(f"{number}-{i:03d}", 20 * number + i, np.full((4, 4, 1), 9 * i, np.uint8), i % 2)
            for i in range(20)
        )
        entry, fact = write_shard(data, f"train-{number:06d}", "train", spec, rows)
        shards.append(entry)
        facts.append(fact)
    manifest = DatasetManifest(
        fingerprint="f",
        spec=spec,
        shards=tuple(shards),
        files=(quarantine_file(data, []),),
        facts=dataset_facts({"train": facts[0] + facts[1]}),
    )
    publish(data, manifest)
    model = str(tmp_path / "models" / "m")
    publish(model, Manifest(kind="model", fingerprint="f", files=(write_file(model, "w", b"abc"),)))
    return tmp_path


def change(path, offset, value=None):
    data = bytearray(path.read_bytes())
    data[offset] = (data[offset] ^ 1) if value is None else value
    path.write_bytes(bytes(data))


def test_what_is_whole_has_no_faults(root):
    assert verify(str(root)) == []
    assert verify(str(root / "data")) == []
    assert verify(str(root / "models" / "m")) == []


def test_a_changed_image_is_named_with_tar_and_key(root):
    tar = root / "data" / "train-000001.tar"
    line = pq.read_table(root / "data" / "train-000001.idx.parquet").to_pylist()[7]
    change(tar, line["offset"] + 45)
    first, second = verify(str(root))
    assert "train-000001.tar" in first
    assert "sha256" in first
    assert second == f"{tar}: member 1-007.png does not fit its checksum in the index"


def test_a_changed_label_is_named(root):
    tar = root / "data" / "train-000000.tar"
    line = pq.read_table(root / "data" / "train-000000.idx.parquet").to_pylist()[4]
    label_at = line["offset"] + -(-line["bytes"] // 512) * 512 + 512
    change(tar, label_at, ord("1"))
    assert f"{tar}: member 0-004.cls is b'1', the index says 0" in verify(str(root / "data"))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("data/train-000000.idx.parquet", "missing"),
        ("data/train-000001.tar", "missing"),
        ("data/quarantine.parquet", "missing"),
        ("models/m/w", "missing"),
    ],
)
def test_a_missing_file_is_named(root, file, words):
    (root / file).unlink()
    (fault,) = verify(str(root))
    assert fault == f"{root / file}: {words}"


def test_a_tar_that_was_cut_off_or_grew(root):
    tar = root / "data" / "train-000000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    assert any("bytes, wanted" in fault for fault in verify(str(root)))
    assert any("cut off" in fault for fault in verify(str(root)))
    tar.write_bytes(whole + bytes(512))
    (fault,) = verify(str(root))
    assert "bytes, wanted" in fault


def test_an_edited_manifest_and_one_that_is_none(root):
    file = root / "data" / "dataset.json"
    content = json.loads(file.read_text())
    content["facts"]["stats"]["mean"] = [0.5]
    file.write_text(json.dumps(content))
    assert verify(str(root / "data")) == [
        f"{file}: does not fit its own digest, it was changed after it was written"
    ]
    for text in ("[]", "{}", "not json", ""):
        file.write_text(text)
        (fault,) = verify(str(root / "data"))
        assert "not a manifest" in fault


def test_a_folder_without_its_manifest_is_unfinished(root):
    claim(str(root / "scores" / "m"), "f")
    (fault,) = verify(str(root))
    assert "scores/m: unfinished" in fault
    (root / "scores" / "m" / "claim.json").unlink()
    assert verify(str(root / "data" / "dataset.json")) == []
    assert verify(str(root)) == []


def test_what_an_evaluation_was_made_from_must_be_there(root):
    features = publish(str(root / "features"), Manifest(kind="features", fingerprint="f"))
    parents = {"features": features.digest, "scores": "ab" * 32}
    made = Manifest(kind="evaluation", fingerprint="f", parents=parents, facts={"model": "m"})
    publish(str(root / "evaluation" / "m"), made)
    (fault,) = verify(str(root))
    assert fault.startswith("m: the scores abababababab")


def test_nothing_to_verify(tmp_path):
    (fault,) = verify(str(tmp_path))
    assert "no manifest there" in fault


def test_copies_that_mlflow_keeps_are_not_results(root):
    copies = root / "mlartifacts" / "run" / "artifacts"
    copies.mkdir(parents=True)
    (copies / "dataset.json").write_bytes((root / "data" / "dataset.json").read_bytes())
    assert verify(str(root)) == []
    assert verify(str(copies))
