"""Scores in use: named passes, an interval, pictures in MLflow, a selection that is trained on."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from genmod.manifest import DatasetManifest, Manifest, load_manifest
from pipelines.cli import main
from pipelines.commands.verify import verify
from tests.pipelines.stages.test_retrain import RECIPE, add_images

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def place(tmp_path_factory, ray_session):
    """Recipe file and root of a trained model and its samples."""
    folder = tmp_path_factory.mktemp("score")
    add_images(folder / "images", 0, 400)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=folder / "root", source=folder / "images"))
    for stage in ("shard", "train", "sample"):
        assert genmod(recipe, stage) == 0
    return recipe, folder / "root"


def genmod(recipe, stage, *changes):
    words = [word for change in changes for word in ("--set", change)]
    return main([stage, "--recipe", str(recipe), *words])


def test_a_sample_of_rows_has_an_interval_for_the_split_and_pictures_in_mlflow(place, capsys):
    recipe, root = place
    changes = ("score.split=val", "score.max_rows=20", "score.calibration.rows=30")
    assert genmod(recipe, "score", *changes) == 0
    lines = capsys.readouterr().err.splitlines()
    titles = [line.split(":")[0].strip() for line in lines if "/30 images (" in line]
    assert set(titles) == {"calibrate vae"}
    assert any(line.startswith("  score vae: 20/20 images (100%)") for line in lines)
    manifest = load_manifest(Manifest, str(root / "scores" / "vae"), "scores")
    data = load_manifest(DatasetManifest, str(root / "data"), "dataset")
    found = manifest.metadata
    assert (found["n"], found["split_rows"]) == (20, data.rows("val"))
    interval = found["split_mean_nats"]
    assert interval["low"] < found["mean_nats"] < interval["high"]
    half = (interval["high"] - interval["low"]) / 2
    assert half < 2.1 * found["mean_nats_stderr"], "narrower than without the correction"
    assert f"for all {data.rows('val')} rows of val" in "\n".join(lines)
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    (run,) = [
        run
        for experiment in client.search_experiments()
        for run in client.search_runs([experiment.experiment_id])
        if run.data.tags.get("genmod.stage") == "score" or run.info.run_name.startswith("score")
    ]
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id, "pictures")}
    assert artifacts == {"pictures/histogram.svg", "pictures/extremes.png"}
    assert genmod(recipe, "score", *changes) == 0
    assert "score: already done" in capsys.readouterr().err


def test_a_selection_of_samples_is_trained_on(place, capsys):
    recipe, root = place
    samples = root / "samples" / "vae"
    changes = (f"score.data={samples}", "score.split=train", "score.max_rows=null")
    assert genmod(recipe, "score", *changes, "score.output=sample-scores") == 0
    scores = load_manifest(Manifest, str(root / "sample-scores" / "vae"), "scores")
    assert scores.metadata["n"] == 120
    clean = root.parent / "clean"
    words = ["select", str(samples), "--scores", str(root / "sample-scores" / "vae")]
    assert main([*words, "--keep", "label != 3 and index < 110", "--out", str(clean / "data")]) == 0
    manifest = load_manifest(DatasetManifest, str(clean / "data"), "dataset")
    assert manifest.rows("train") == 99
    assert manifest.metadata["sample"]["draws_from_p"] is False
    assert verify(str(clean)) == []
    assert genmod(recipe, "train", f"root={clean}", "train.nimg=256") == 0
    model = load_manifest(Manifest, str(clean / "models" / "vae"), "model")
    assert model.parents["data"] == manifest.digest
    capsys.readouterr()
    assert (
        main(["lineage", str(clean / "models" / "vae"), "--root", str(clean), "--root", str(root)])
        == 0
    )
    text = capsys.readouterr().out
    assert "selected by label != 3 and index < 110" in text
    assert "from folder:" in text
