"""genmod lineage: from anything to its sources, and from a row to all that was made with it."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from genmod import storage
from genmod.data.format.shards import Row, write_shard
from genmod.lineage.rows import RowQuery
from genmod.manifest import (
    DatasetManifest,
    Manifest,
    dataset_metadata,
    load_manifest,
    publish,
    write_file,
)
from pipelines.cli import main
from pipelines.commands.lineage import lineage_of as lineage
from pipelines.commands.lineage import root_of
from tests.builders import SMALL_SPEC, write_scores
from tests.genmod.data.conftest import build  # noqa: F401, a fixture
from tests.pipelines.manifest_reads import few_reads


def add_images(source, first, end):
    for row in range(first, end):
        path = source / str(row % 2) / f"image {row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(row).integers(0, 256, (4, 4), np.uint8)
        Image.fromarray(pixels).save(path)


def model(root, parents):
    files = (write_file(str(root), "w", b"w"),)
    return publish(
        str(root), Manifest(kind="model", fingerprint=str(root), parents=parents, files=files)
    )


def samples(root, model_digest):
    rows = [Row(f"{i:09d}", i, np.full((4, 4, 1), i, np.uint8), i % 2) for i in range(5)]
    shard, stats = write_shard(str(root), "train-000000", "train", SMALL_SPEC, rows)
    metadata = dataset_metadata({"train": stats}) | {"sample": {"seed": 0}}
    return publish(
        str(root),
        DatasetManifest(
            fingerprint="s",
            parents={"model": model_digest},
            spec=SMALL_SPEC,
            shards=(shard,),
            metadata=metadata,
        ),
    )


@pytest.fixture
def tree(tmp_path, build):  # noqa: F811
    """A root with two retrains: three versions, each with a model, samples, scores and a decision."""
    root, previous, place, start = tmp_path / "root", None, None, {}
    for number, end in enumerate((40, 60, 80), 1):
        add_images(tmp_path / "images", 0 if number == 1 else end - 20, end)
        version = root if number == 1 else root / "retrain" / f"v{number:04d}"
        data = build(
            version / "data", source=f"folder:{tmp_path}/images", shard_rows=8,
            splits={"val": 0.2, "test": 0.2}, previous=previous, previous_root=place,
        )  # fmt: skip
        trained = model(version / "models" / "m", {"data": data.digest} | start)
        made = samples(version / "samples" / "m", trained.digest)
        scores = write_scores(
            str(version / "scores" / "m"), data, str(version / "data"), "val", model=trained.digest
        )
        parents = {
            "data": data.digest,
            "samples": made.digest,
            "scores": scores.digest,
        }
        evaluation = publish(
            str(version / "evaluation" / "m"),
            Manifest(kind="evaluation", fingerprint="e", parents=parents, metadata={"model": "m"}),
        )
        decided = {"model": trained.digest, "evaluation": evaluation.digest}
        champion = {"champion": start["start"]} if start else {}
        publish(
            str(version / "decision" / "m"),
            Manifest(
                kind="decision",
                fingerprint="d",
                parents=decided | champion,
                metadata={"promote": True},
            ),
        )
        previous, place, start = data, version / "data", {"start": trained.digest}
    return root


def run(*words):
    return main(["lineage", *map(str, words)])


def urls(steps):
    """URLs of all nodes of a walk in JSON."""
    return {step["url"] for step in steps if "url" in step}


def notes_of(steps):
    """URL -> note of the nodes of a walk in JSON."""
    return {
        step["url"]: step.get("note")
        for step in steps
        if not step.get("repeated") and "url" in step
    }


def folders(root):
    """Folders of all manifests below a root."""
    names = ("dataset", "model", "scores", "evaluation", "decision")
    return {str(path.parent) for name in names for path in root.rglob(f"{name}.json")}


def test_everything_leads_to_the_first_version_and_back(tree):
    values, _ = lineage(str(tree / "retrain" / "v0003" / "decision" / "m"))
    assert urls(values["made_from"]) == folders(tree) - {
        str(tree / "decision" / "m"),
        str(tree / "retrain" / "v0002" / "decision" / "m"),
        *(str(tree / each / folder / "m") for each in (".", "retrain/v0002")
          for folder in ("samples", "scores", "evaluation")),
    }  # fmt: skip
    assert values["missing"] == values["problems"] == []
    values, _ = lineage(str(tree / "data"))
    assert urls(values["used_for"]) == folders(tree)
    assert values["exit_code"] == 0


def test_each_manifest_is_read_once(tree):
    key = first_row(tree, "train")
    with few_reads(tree) as reads:
        assert run(tree / "data", "--key", key) == 0
    assert len(reads) == len(folders(tree))


def first_row(root, split, version="."):
    """The key of the first row of a split that a version added."""
    from genmod.data.format.index import read_keys

    folder = str(root / version / "data")
    manifest = load_manifest(DatasetManifest, folder, "dataset")
    own = [s for s in manifest.stored(folder, split) if not s.entry.folder]
    return read_keys(own[0])[0]


def test_a_source_row_leads_to_all_models_and_datasets_made_with_it(tree):
    values, lines = lineage(str(tree / "data"), RowQuery(key=first_row(tree, "train")))
    found = urls(values["used_for"])
    for version in (".", "retrain/v0002", "retrain/v0003"):
        for folder in ("data", "models/m", "samples/m", "decision/m", "evaluation/m"):
            assert str((tree / version / folder).resolve()) in found
    notes = notes_of(values["used_for"])
    assert notes[str(tree / "retrain" / "v0003" / "models" / "m")] == "trained on the row"
    assert values["row"]["name"].startswith(("0/image 0", "1/image 0"))
    assert any("in the source" in line for line in lines)


def test_a_row_of_a_later_version_did_not_make_the_earlier_models(tree):
    v2 = tree / "retrain" / "v0002"
    values, _ = lineage(str(v2 / "data"), RowQuery(key=first_row(tree, "train", "retrain/v0002")))
    found = urls(values["used_for"])
    assert str(v2 / "models" / "m") in found
    assert str(tree / "retrain" / "v0003" / "models" / "m") in found
    assert str(tree / "models" / "m") not in found
    assert str(tree / "data") not in found


def test_held_out_rows_trained_no_model(tree):
    values, _ = lineage(str(tree / "data"), RowQuery(key=first_row(tree, "test")))
    found = urls(values["used_for"])
    assert not any("/models/" in url or "/samples/" in url for url in found)
    assert str(tree / "evaluation" / "m") in found
    values, _ = lineage(str(tree / "data"), RowQuery(key=first_row(tree, "val")))
    notes = notes_of(values["used_for"])
    assert notes[str(tree / "models" / "m")] == "validated with the row"
    assert str(tree / "scores" / "m") in notes


def test_an_image_and_a_score_lead_to_their_model_and_source(tree, capsys):
    assert run(tree / "samples" / "m", "--index", 3) == 0
    text = capsys.readouterr().out
    assert text.startswith("row 000000003 of train, index 3, label 1")
    assert "model: model " in text
    assert "from folder:" in text
    key = first_row(tree, "val")
    assert run(tree / "scores" / "m", "--key", key, "--json") == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["score"]["key"] == values["row"]["key"] == key
    assert values["score"]["values"]["nats"] == -values["score"]["index"]
    assert "exit_code" not in values


def test_a_selection_has_the_row_only_if_it_kept_it(tree):
    words = ["--scores", str(tree / "scores" / "m"), "--unscored", "drop"]
    key = first_row(tree, "val")
    for name, operator in (("with", "="), ("without", "!=")):
        assert main(["select", str(tree / "data"), *words, "--keep", f'key {operator} "{key}"',
                     "--out", str(tree / name)]) == 0  # fmt: skip
    values, _ = lineage(str(tree / "data"), RowQuery(key=key))
    notes = notes_of(values["used_for"])
    assert notes[str(tree / "with")] == "in val"
    assert notes[str(tree / "without")] == "without the row; selected by what used it"
    values, lines = lineage(str(tree / "with"))
    assert {str(tree / "data"), str(tree / "scores" / "m"), str(tree / "models" / "m")} < urls(
        values["made_from"]
    )
    assert any("selected by key = " in line for line in lines)


@pytest.mark.parametrize(
    "name", ["data/dataset.json", "data/train-000000.tar", "scores/m/val-000000.parquet"]
)
def test_manifests_and_files_stand_for_their_folder(tree, name):
    values, _ = lineage(str(tree / name))
    assert values["output"] == str((tree / name).parent)


def test_a_moved_root_has_the_same_lineage(tree, tmp_path):
    _, before = lineage(str(tree / "data"))
    shutil.move(tree, tmp_path / "moved")
    _, after = lineage(str(tmp_path / "moved" / "data"))
    assert [line.replace("/moved/", "/root/") for line in after] == before


def test_a_root_in_an_object_store_has_the_same_lineage(tree, s3_root):
    fs, folder = storage.filesystem(s3_root)
    fs.put(f"{tree}/", f"{folder}/", recursive=True)
    row = RowQuery(key=first_row(tree, "train"))
    for name, query in (("data", row), ("samples/m", RowQuery(index=3)), ("decision/m", None)):
        local, before = lineage(str(tree / name), query)
        stored, after = lineage(f"{s3_root}/{name}", query)
        assert [line.replace(s3_root, str(tree)) for line in after] == before
        assert stored["exit_code"] == local["exit_code"] == 0


def test_what_is_missing_or_broken_is_said_with_exit_1(tree, capsys):
    (tree / "models" / "m" / "model.json").unlink()
    assert run(tree / "samples" / "m") == 1
    captured = capsys.readouterr().out
    assert "model: not found: " in captured
    assert "incomplete: 1 inputs are not below" in captured
    path = tree / "scores" / "m" / "scores.json"
    path.write_text(path.read_text().replace('"nats', '"nuts'))
    assert run(tree / "data") == 1
    assert "skipped: " in capsys.readouterr().out


def test_inputs_below_another_root_are_found_with_both(tree, tmp_path):
    shutil.move(tree / "models", tmp_path / "elsewhere")
    assert run(tree / "samples" / "m") == 1
    assert run(tree / "samples" / "m", "--root", tree, "--root", tmp_path / "elsewhere") == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("nowhere",), "nothing published is at"),
        (("data", "--key", "no-such-key"), "has no row with key no-such-key"),
        (("data", "--key", "a", "--index", "1"), "either --key or --index"),
        (("data", "--split", "val"), "--split needs --key or --index"),
        (("data", "--index", "0"), "name one with --split"),
        (("models/m", "--index", "0"), "is model, which has no rows"),
        (("scores/m", "--key", "x"), "has no score of key x"),
        (("scores/m", "--index", "0", "--split", "train"), "has scores of val, not of train"),
        (("data", "--root", "elsewhere"), "not below the given --root"),
    ],
)
def test_wrong_requests_are_one_line_and_exit_2(tree, capsys, words, expected):
    words = [
        str(tree / w) if w in {"nowhere", "data", "models/m", "scores/m", "elsewhere"} else w
        for w in words
    ]
    assert run(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


@pytest.mark.parametrize(
    ("folder", "root"),
    [
        ("s3://bucket/run/data", "s3://bucket/run"),
        ("/data/run/data", "/data/run"),
        ("/run/retrain/v0002/synthetic/vae", "/run"),
        ("/run/samples/vae", "/run"),
        ("/run/decision/vae/against-0123", "/run"),
        ("/run/kept", "/run"),
        ("runs/a/models/b", "runs/a"),
    ],
)
def test_the_root_of_a_run_is_known_by_its_layout(folder, root):
    assert root_of(folder) == root
