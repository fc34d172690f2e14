"""``genmod inspect``: lines for people, JSON for programs, a picture for both."""

import json

import numpy as np
import pytest

from genmod.data.format.shards import Row, quarantine_file, write_shard
from genmod.data.sharding.finish import make_manifest
from genmod.data.sharding.ingest import make_shard
from genmod.data.sharding.plan import make_plan
from genmod.data.sources.config import DataConfig
from genmod.manifest import DatasetManifest, ImageSpec, dataset_metadata, publish
from pipelines.cli import main
from tests.genmod.data.builders import encode
from tests.pipelines.manifest_reads import few_reads


@pytest.fixture
def root(tmp_path):
    """A dataset below run/data: 30 images of 25 classes."""
    spec = ImageSpec(channels=1, height=4, width=4, classes=25)
    rows = [Row(f"k{i}", i, np.full((4, 4, 1), i, np.uint8), i % 25) for i in range(30)]
    root = str(tmp_path / "run" / "data")
    shard, metadata = write_shard(root, "train-000000", "train", spec, rows)
    manifest = DatasetManifest(
        fingerprint="f" * 64,
        spec=spec,
        shards=(shard,),
        metadata={
            "version": 3,
            "source": "folder:/x\x1b[2J",
            **dataset_metadata({"train": metadata}),
        },
        parents={"source": "5" * 64},
        class_names=("name0", *(f"name{k}" for k in range(1, 25))),
    )
    return root, publish(root, manifest)


def test_a_dataset_is_described_and_pictured(root, tmp_path, monkeypatch, capsys):
    url, manifest = root
    monkeypatch.chdir(tmp_path)
    with few_reads(tmp_path) as reads:
        assert main(["inspect", url]) == 0
    assert sum(reads.values()) == 1
    text = capsys.readouterr().out
    for line in (
        f"dataset   {url}",
        "images    1x4x4, 256 levels, 25 classes",
        f"version   3, format 1, digest {manifest.digest[:12]}, fingerprint ffffffffffff",
        "source    folder:/x\\x1b[2J",
        "parent    source 555555555555",
        "size      30 images, 1 shards, ",
        "train     30 images, 1 shard of 30 images, ",
        "          channel 0: mean 14.50, std 8.66 of 0..255",
        "          class 0 (name0): 2, 6.7%",
        "          class 4 (name4): 2, 6.7%",
        "          class 5 (name5): 1, 3.3%",
        "          5 more classes: 1 to 1 images each",
        "rejected  0",
        f"sheet     {tmp_path}/contact-sheet.png: 30 images of train, one row per class, 0 to 24",
    ):
        assert line in text
    assert "splits  " not in text  # no census, no word about what decided them
    assert (tmp_path / "contact-sheet.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_as_json_and_the_sheet_elsewhere(root, tmp_path, capsys):
    url, manifest = root
    out = tmp_path / "pictures" / "sheet.png"
    assert main(["inspect", url, "--out", str(out), "--split", "train", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert out.is_file()
    assert (result["stage"], result["status"], result["output"]) == ("inspect", "done", url)
    assert result["digest"] == manifest.digest
    assert result["fingerprint"] == manifest.fingerprint
    assert result["sheet"] == str(out)
    assert result["splits"]["train"]["rows_by_class"] == [2] * 5 + [1] * 20
    assert result["seconds"] >= 0


@pytest.mark.parametrize(
    ("words", "rule", "is_declared"),
    [
        (["--set", "data.splits=source"], "declared by the source", True),
        ([], "by a hash of the name: val 0.1, test 0.1", False),
        (["--set", "data.splits.val=0"], "by a hash of the name: val 0, test 0.1", False),
    ],
)
def test_source_and_dataset_say_which_splits_are_used(tmp_path, capsys, words, rule, is_declared):
    for split, count in (("train", 9), ("test", 5)):
        (tmp_path / "in" / split / "cat").mkdir(parents=True)
        for number in range(count):
            pixels = np.full((4, 4), 20 * number + count, np.uint8)
            (tmp_path / "in" / split / "cat" / f"{number}.png").write_bytes(encode(pixels))
    source = f"folder:{tmp_path}/in"
    out = ["--out", str(tmp_path / "sheet.png")]
    assert main(["inspect", source, *out, *words, "--json"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert f"splits    {rule}" in shown
    assert json.loads(shown[-1])["splits"] == rule
    tree = {"source": source}
    if words:
        tree["splits"] = "source" if is_declared else {"val": 0}
    plan = make_plan(DataConfig.model_validate(tree), 0)
    root = str(tmp_path / "data")
    receipts = [make_shard(plan.job(shard, root)) for shard in plan.shards]
    publish(root, make_manifest(plan, root, receipts, quarantine_file(root, plan.rejected)))
    assert main(["inspect", root, *out, "--json"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown.count(f"splits    {rule}") == 1
    result = json.loads(shown[-1])
    assert result["split_rule"] == rule
    if is_declared:
        found = {split: part["rows"] for split, part in result["splits"].items()}
        assert found == {"train": 9, "test": 5}


@pytest.mark.parametrize(
    ("where", "words", "says"),
    [
        ("run", (), "no dataset at .*run, but there is one at .*run/data; give that"),
        ("nowhere", (), "no dataset at .*nowhere; create it first: genmod shard"),
        ("run/data", ("--split", "val"), "the val split has no rows"),
    ],
)
def test_nothing_to_inspect(root, tmp_path, monkeypatch, capsys, where, words, says):
    import re

    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(tmp_path / where), *words]) == 2
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "contact-sheet.png").exists()
