"""genmod select: the kept rows, byte for byte, in a dataset that verifies; exit codes; exactly once."""

import json
import os
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from genmod import storage
from genmod.data.reading.reader import open_dataset, read_rows, split_reader
from genmod.manifest import DatasetManifest, ImageSpec, load_manifest
from genmod.selection import job
from pipelines.cli import main
from pipelines.commands.verify import verify
from tests.builders import write_noise, write_scores, write_two_shards
from tests.pipelines.manifest_reads import few_reads

NAMES = ("cat", "it's")
SPLITS_SPEC = ImageSpec(channels=3, height=4, width=5, classes=2)


@pytest.fixture
def root(tmp_path):
    """A dataset of 7 and 6 rows of the split train, and scores of them."""
    dataset = write_two_shards(str(tmp_path / "data"))
    write_scores(str(tmp_path / "scores"), dataset, str(tmp_path / "data"), "train")
    return tmp_path


@pytest.fixture
def splits(tmp_path):
    """A dataset of three splits with class names, and scores of each."""
    root = str(tmp_path / "data")
    dataset = write_noise(root, SPLITS_SPEC, {"train": 20, "val": 9, "test": 5}, NAMES)
    for split in ("train", "val", "test"):
        write_scores(str(tmp_path / f"scores-{split}"), dataset, root, split)
    return tmp_path


def select(root, keep, *words, out="kept", scores=("scores",), code=0):
    """Run the command; the manifest of the new dataset."""
    given = [word for name in scores for word in ("--scores", str(root / name))]
    words = ["select", str(root / "data"), *given, "--keep", keep, "--out", str(root / out), *words]
    assert main(words) == code
    return load_manifest(DatasetManifest, str(root / out), "dataset")


def members(*folders):
    """Name -> bytes of all members of all tars in folders."""
    found = {}
    for folder in folders:
        for path in folder.glob("*.tar"):
            with tarfile.open(path) as tar:
                found |= {each.name: tar.extractfile(each).read() for each in tar.getmembers()}
    return found


def test_it_makes_the_same_dataset_in_an_object_store(root, s3_root):
    fs, folder = storage.filesystem(s3_root)
    fs.put(f"{root}/", f"{folder}/", recursive=True)
    local = select(root, "index >= 4")
    words = ["--scores", f"{s3_root}/scores", "--keep", "index >= 4", "--out", f"{s3_root}/kept"]
    assert main(["select", f"{s3_root}/data", *words]) == 0
    stored = open_dataset(f"{s3_root}/kept")
    assert stored.shards == local.shards
    assert (stored.folders, verify(s3_root)) == (("../data",), [])


def test_whole_shards_are_shared_and_others_lose_rows(root):
    manifest = select(root, "index >= 4")
    assert [(shard.rows, shard.folder) for shard in manifest.shards] == [(3, 0), (6, 1)]
    assert manifest.folders == ("../data",)
    assert sorted(path.name for path in (root / "kept").iterdir()) == [
        "claim.json", "dataset.json", "receipts", "train-000000.dropped.parquet",
        "train-000000.idx.parquet", "train-000000.tar",
    ]  # fmt: skip
    dropped = pq.read_table(root / "kept" / "train-000000.dropped.parquet").to_pylist()
    assert [(row["key"], row["index"], row["reason"]) for row in dropped] == [
        (f"0-{i}", i, "score") for i in range(4)
    ]
    before = members(root / "data")
    assert members(root / "kept") == {
        name: before[name] for name in before if name[:3] in ("0-4", "0-5", "0-6")
    }
    selection = manifest.metadata["selection"]
    assert (selection["condition"], selection["kept"], selection["dropped"]) == ("index >= 4", 9, 4)
    assert selection["shards"] == {"shared": 1, "copied": 0, "rewritten": 1, "emptied": 0}
    dataset = open_dataset(str(root / "data"))
    assert manifest.parents["dataset"] == dataset.digest


def test_it_verifies_trains_and_any_reader_sees_the_kept_rows(root):
    manifest = select(root, "p_corrected >= 0.03 and p_corrected < .11")
    assert verify(str(root)) == []
    reader = split_reader(str(root / "kept"), manifest, "train")
    assert reader.find(np.arange(len(reader))).index_N.tolist() == [*range(3, 11)]
    before = read_rows(str(root / "data"), open_dataset(str(root / "data")), "train", range(3, 11))
    after = read_rows(str(root / "kept"), manifest, "train", range(8))
    assert np.array_equal(before.pixels_BCHW, after.pixels_BCHW)
    reader.close()
    tars = sorted(str(path) for path in (root / "kept").glob("*.tar"))
    keys = [sample["__key__"] for sample in webdataset.WebDataset(tars, shardshuffle=False)]
    assert keys == [f"0-{i}" for i in range(3, 7)] + [f"1-{i}" for i in range(4)]
    assert manifest.metadata["splits"]["train"]["next_index"] == 13


@pytest.mark.parametrize("keep", ["index < 7", "index >= 7", "label = 1", "index < 100"])
def test_statistics_are_those_of_the_kept_rows(root, keep):
    select(root, keep)
    assert verify(str(root / "kept")) == []


def test_a_dataset_elsewhere_copies_what_it_cannot_name(root, capsys):
    manifest = select(root, "index < 9", out="far/kept")
    assert manifest.folders == ()
    assert verify(str(root / "far")) == []
    assert manifest.metadata["selection"]["shards"]["copied"] == 1
    assert "cannot name their folder" in capsys.readouterr().err
    original = (root / "data" / "train-000000.tar").read_bytes()
    assert (root / "far/kept/train-000000.tar").read_bytes() == original


def test_the_data_of_another_root_shares_the_tars(tmp_path):
    (tmp_path / "run").mkdir()
    root = tmp_path / "run"
    dataset = write_two_shards(str(root / "data"))
    write_scores(str(root / "scores"), dataset, str(root / "data"), "train")
    manifest = select(root, "index < 9", out="../clean/data")
    assert manifest.folders == ("../../run/data",)
    assert verify(str(tmp_path)) == []


def test_a_selection_of_a_selection_names_both_folders(root):
    dataset = select(root, "index >= 4")
    write_scores(str(root / "more"), dataset, str(root / "kept"), "train")
    words = ["--scores", str(root / "more"), "--out", str(root / "less")]
    assert main(["select", str(root / "kept"), "--keep", "index != 5", *words]) == 0
    manifest = open_dataset(str(root / "less"))
    assert manifest.folders == ("../kept", "../data")
    assert verify(str(root)) == []
    assert [(shard.rows, shard.folder) for shard in manifest.shards] == [(2, 0), (6, 2)]


def test_splits_without_scores_are_refused_kept_or_dropped(splits, capsys):
    assert select(splits, "index >= 2", scores=["scores-train"], code=2) is None
    assert "rows without a score: 9 of val, 5 of test" in capsys.readouterr().err
    kept = select(splits, "index >= 2", "--unscored", "keep", scores=["scores-train"])
    assert [kept.rows(split) for split in ("train", "val", "test")] == [18, 9, 5]
    words = ("--unscored", "drop")
    dropped = select(splits, "index >= 2", *words, scores=["scores-train"], out="dropped")
    assert [dropped.rows(split) for split in ("train", "val", "test")] == [18, 0, 0]
    every = select(
        splits, "index >= 2", scores=["scores-val", "scores-test", "scores-train"], out="every"
    )
    assert [every.rows(split) for split in ("train", "val", "test")] == [18, 7, 3]
    reasons = pq.read_table(splits / "dropped" / "val-000000.dropped.parquet")["reason"].to_pylist()
    assert reasons == ["no score"] * 9
    assert verify(str(splits)) == []


def test_rows_that_were_not_drawn_for_scoring_count_as_unscored(root):
    dataset = open_dataset(str(root / "data"))
    write_scores(str(root / "some"), dataset, str(root / "data"), "train", every=2)
    assert select(root, "index != 2", scores=["some"], code=2) is None
    kept = select(root, "index != 2", "--unscored", "keep", scores=["some"])
    assert kept.rows("train") == 12
    assert kept.metadata["selection"]["splits"]["train"]["unscored"] == 6
    dropped = select(root, "index != 2", "--unscored", "drop", scores=["some"], out="dropped")
    assert dropped.rows("train") == 6


def test_classes_are_compared_by_name_and_number(splits):
    words = ("--unscored", "drop")
    select(splits, "class = 'it''s' and label = 1", *words, scores=["scores-train"])
    manifest = open_dataset(str(splits / "kept"))
    assert manifest.metadata["splits"]["train"]["rows_K"] == [0, 10]
    assert manifest.class_names == NAMES


@pytest.fixture
def numbered(tmp_path):
    """A dataset of classes that are called 1 to 12, and its scores."""
    root = str(tmp_path / "data")
    names = tuple(str(number) for number in range(1, 13))
    dataset = write_noise(
        root, SPLITS_SPEC.model_copy(update={"classes": 12}), {"train": 36}, names
    )
    write_scores(str(tmp_path / "scores"), dataset, root, "train")
    return tmp_path


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("label = 10", "class number 9 is called '10', so it is not clear whether numbers or names are "
         "meant; write class = '10' or class = '11'"),
        ("nats < 1e9 and not label != 1", "write class = '1' or class = '2'"),
        ("label = 12", "class number 11 is called '12', so it is not clear whether numbers or names are "
         "meant; write class = '12'"),
        ("label < 6", "class number 5 is called '6', so it is not clear whether numbers or names are meant; "
         "name the classes, e.g. class = '6'"),
        ("label >= 12", "name the classes, e.g. class = '12'"),
    ],
)  # fmt: skip
def test_a_number_that_is_the_name_of_another_class_is_refused(numbered, capsys, keep, expected):
    assert select(numbered, keep, code=2) is None
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert expected in line


@pytest.mark.parametrize(
    ("keep", "number"), [("class = '10'", 9), ("label = 0", 0), ("label >= 0 and label = 0", 0)]
)
def test_clear_numbers_of_classes_are_kept(numbered, keep, number):
    select(numbered, keep)
    kept = open_dataset(str(numbered / "kept")).metadata["splits"]["train"]["rows_K"]
    assert kept == [3 if each == number else 0 for each in range(12)]


def test_a_finished_selection_does_nothing_and_other_work_is_refused(root, capsys):
    select(root, "index>=4")
    before = {path: path.stat().st_mtime_ns for path in (root / "kept").rglob("*")}
    words = ["--scores", str(root / "scores"), "--out", str(root / "kept"), "--json"]
    with few_reads(root) as reads:
        assert main(["select", str(root / "data"), "--keep", "(index >= 4)", *words]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["status"] == "already done"
    assert {path: path.stat().st_mtime_ns for path in (root / "kept").rglob("*")} == before
    assert len(reads) == 3
    select(root, "index >= 5", code=2)
    assert "choose another folder with --out" in capsys.readouterr().err
    assert main(["select", str(root / "data"), "--scores", str(root / "scores"),
                 "--keep", "index >= 5", "--out", str(root / "data")]) == 2  # fmt: skip


def test_an_interrupted_selection_resumes_to_the_same_bytes(root):
    whole = select(root, "label = 1")
    tars = {path: path.read_bytes() for path in (root / "kept").glob("train-*")}
    for name in ("dataset.json", "receipts/train-000001.json", "train-000001.tar"):
        (root / "kept" / name).unlink()
    first = root / "kept" / "train-000000.tar"
    before = first.stat().st_mtime_ns
    select(root, "label = 0", code=2)
    assert select(root, "label = 1") == whole
    assert first.stat().st_mtime_ns == before
    assert {path: path.read_bytes() for path in (root / "kept").glob("train-*")} == tars


def test_a_dry_run_writes_nothing(root, capsys):
    assert select(root, "index > 3", "--dry-run", "--json") is None
    captured = capsys.readouterr()
    assert "train: 9 of 13 rows are kept" in captured.err
    assert json.loads(captured.out.splitlines()[-1])["selection"]["kept"] == 9
    assert sorted(os.listdir(root)) == ["data", "scores"]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("p_corected > 0.01", "no column 'p_corected'; did you mean 'p_corrected'"),
        ("class = 'cat'", "no column 'class'"),
        ("nats >", "expected a number"),
        ("nats > 100", "none of 13 rows meets nats > 100; nothing was written"),
        ("key > 3", "key > 3: expected a text in quotes"),
    ],
)
def test_wrong_conditions_exit_with_2_and_write_nothing(root, capsys, keep, expected):
    assert select(root, keep, code=2) is None
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert expected in line
    assert sorted(os.listdir(root)) == ["data", "scores"]


def test_the_name_of_an_unknown_class_is_refused(splits, capsys):
    select(splits, "class = 'cta'", "--unscored", "drop", scores=["scores-train"], code=2)
    assert "no class 'cta'; did you mean 'cat'" in capsys.readouterr().err


def test_scores_of_another_dataset_are_refused(root, capsys):
    other = write_noise(str(root / "other"), SPLITS_SPEC, {"train": 4})
    write_scores(str(root / "theirs"), other, str(root / "other"), "train")
    assert select(root, "nats < 0", scores=["theirs"], code=2) is None
    assert "are scores of dataset" in capsys.readouterr().err
    assert select(root, "nats < 0", scores=["nowhere"], code=2) is None
    assert select(root, "nats < 0", scores=["scores", "scores"], code=2) is None
    assert select(root, "nats < 0", scores=["scores"] * 4, code=2) is None


def test_scores_of_two_models_are_not_compared(splits, capsys):
    dataset = open_dataset(str(splits / "data"))
    write_scores(str(splits / "another"), dataset, str(splits / "data"), "val", model="a" * 64)
    words = ("--unscored", "drop")
    select(splits, "nats < 0", *words, scores=["scores-train", "another"], code=2)
    assert "different models or estimators" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["scores/train-000001.parquet", "data/train-000000.tar"])
def test_damage_is_named_and_nothing_is_published(root, capsys, file):
    path = root / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert select(root, "index != 2", code=2) is None
    assert "does not match its digest" in capsys.readouterr().err


def test_scores_of_other_rows_are_found(root):
    """Forged: the tables of another dataset under a manifest that names this one."""
    other = write_noise(str(root / "other"), SPLITS_SPEC, {"train": 13})
    forged = other.model_copy(update={"digest": open_dataset(str(root / "data")).digest})
    write_scores(str(root / "forged"), forged, str(root / "other"), "train")
    assert select(root, "index != 2", scores=["forged"], code=2) is None


def test_a_synthetic_dataset_is_no_longer_a_draw_from_p(root, capsys):
    dataset = open_dataset(str(root / "data"))
    (root / "data" / "dataset.json").unlink()
    sampled = dataset.model_copy(
        update={
            "metadata": dataset.metadata | {"sample": {"draws_from_p": True, "seed": 3}},
            "parents": {"model": "b" * 64},
        }
    )
    sampled = job.publish(str(root / "data"), sampled)
    write_scores(str(root / "again"), sampled, str(root / "data"), "train")
    manifest = select(root, "index != 2", scores=["again"])
    assert manifest.metadata["sample"] == {"draws_from_p": False, "seed": 3}
    assert manifest.parents["model"] == "b" * 64
    assert main(["inspect", str(root / "kept"), "--out", str(root / "sheet.png")]) == 0
    assert "selected  index != 2: 12 rows kept, 1 dropped" in capsys.readouterr().out


def test_a_manifest_whose_statistics_are_wrong_is_one_error(root):
    dataset = open_dataset(str(root / "data"))
    (root / "data" / "dataset.json").unlink()
    stats = dataset.metadata["splits"]["train"]
    changed = stats | {"pixel_sum_C": [8], "pixel_square_sum_C": [64]}
    splits = {"splits": {"train": changed}}
    network = job.dataset_metadata({"train": job.RowStats.model_validate(changed)})
    sampled = dataset.model_copy(update={"metadata": splits | {"stats": network["stats"]}})
    sampled = job.publish(str(root / "data"), sampled)
    write_scores(str(root / "again"), sampled, str(root / "data"), "train")
    assert select(root, "index != 2", scores=["again"], code=2) is None
