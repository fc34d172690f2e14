"""A whole run of tiny models, then new images: a new version, a decision, and no work the next time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

from genmod.data.sharding.plan import make_plan
from genmod.data.sharding.previous_version import load_previous_version
from genmod.errors import ConfigError
from genmod.evaluation.comparison import differences_from
from genmod.evaluation.images import split_digest
from genmod.evaluation.measure import metrics_from
from genmod.manifest import DatasetManifest, Manifest, load_manifest
from genmod.metrics.protocol import MetricValue
from genmod.promotion import Ledger
from pipelines.commands.plan import plan
from pipelines.commands.verify import verify
from pipelines.recipe import recipe as config
from pipelines.recipe.context import DONE, Context
from pipelines.stages import retrain, run
from pipelines.stages.dataset_versions import WARM_REASON, versions
from pipelines.stages.drift import new_rows_reason
from pipelines.stages.replaced import load_replaced
from pipelines.tracking import registry
from tests.pipelines.manifest_reads import few_reads
from tests.processes import TIMEOUT_S

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RECIPE = """
root: {root}
seed: 5
data:
  source: folder:{source}
  shard_rows: 200
  splits: {{val: 0.1, test: 0.2}}
model:
  vae:
    family: vae
    net: {{latents: 4, widths: [8], embedding: 4}}
train:
  nimg: 1024
  batch: 64
  log_every_nimg: 256
  checkpoint_every_nimg: 256
  validate_every_nimg: null
  grid_every_nimg: null
sample: {{count: 120, shard_rows: 60}}
score: {{split: test, max_rows: 50}}
evaluate:
  images: 100
  memorisation_calibration: 100
  features: {{kind: pca}}
promote:
  improvements: 0
  false_promotion: 0.5
  familywise_error: 0.5
  planned_decisions: 20
  rules:
    fd: {{max_regression: 0.9, relative: true}}
"""


def add_images(source: Path, first: int, end: int) -> None:
    """Some of scikit-learn's digits as PNG files, in a folder for each class."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for row in range(first, end):
        folder = source / str(digits.target[row])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[row] * 15.9).astype("uint8")
        Image.fromarray(pixels).save(folder / f"{row:05d}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Recipe file and root of a finished run."""
    folder = tmp_path_factory.mktemp("retrain")
    add_images(folder / "images", 0, 600)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=folder / "root", source=folder / "images"))
    return recipe, folder / "root"


def _do(recipe: Path, stage, *assignments: str):
    context = Context(config.load_recipe(str(recipe), assignments), ("vae",))
    try:
        with few_reads(recipe.parent / "root"):
            return stage(context)
    finally:
        assert context.tracker.close(TIMEOUT_S)


def _champion(recipe: Path):
    context = Context(config.load_recipe(str(recipe)), ("vae",))
    try:
        return registry.champion(context.tracker, "vae")
    finally:
        context.tracker.close()


def _digests(root: Path) -> dict[str, str]:
    """Every manifest below a folder."""
    return {
        str(path.relative_to(root)): json.loads(path.read_text())["digest"]
        for path in root.rglob("*.json")
        if path.name in ("dataset.json", "model.json", "evaluation.json", "decision.json")
    }


def test_retrain(ray_session, place):
    recipe, root = place
    assert _do(recipe, run.stage)["status"] == DONE
    assert _champion(recipe) is None

    first = _do(recipe, retrain.stage)
    assert (first["status"], first["version"]) == (retrain.NOTHING_NEW, 1)
    first_champion = _champion(recipe)
    assert first_champion is not None, "version 1 becomes the champion"
    assert first_champion.root == str(root / "models" / "vae")

    before = _digests(root)
    add_images(root.parent / "images", 600, 1100)
    version_root = root / "retrain" / "v0002"
    planned = _do(recipe, partial(plan, "retrain"))
    assert [(step.stage, step.done) for step in planned][:2] == [("shard", False), ("train", False)]
    assert planned[0].work["images"] == 500
    assert not version_root.exists()
    _kill_after_training(recipe, version_root)
    trained = _digests(version_root)
    assert not (version_root / "decision").exists()

    grown = _do(recipe, retrain.stage)
    assert (grown["status"], grown["version"]) == (DONE, 2)
    after = _digests(root)
    assert {name: after[name] for name in before} == before
    assert {name: _digests(version_root)[name] for name in trained} == trained
    _check_version(root, version_root)

    decision = grown["decisions"]["vae"]
    assert (decision["promote"], decision["champion"]["digest"]) == (True, first_champion.digest)
    champion = _champion(recipe)
    assert champion is not None
    assert champion.root == str(version_root / "models" / "vae")
    ledger = Ledger(str(root / "promotions"), "vae").read()
    assert [entry.action for entry in ledger.entries] == ["promote", "promote"]
    assert [each.digest for each in ledger.stack] == [first_champion.digest, champion.digest]
    assert verify(str(root / "promotions")) == []
    _check_runs(root)

    again = _do(recipe, retrain.stage)
    assert (again["status"], again["version"]) == (retrain.NOTHING_NEW, 2)
    assert _digests(root) == after
    assert _champion(recipe) == champion
    assert not (root / "retrain" / "v0003").exists()
    planned = _do(recipe, partial(plan, "retrain"))
    assert planned
    assert all(step.done for step in planned)
    made = _do(recipe, retrain.stage, "retrain.synthetic_count=30")
    assert made["synthetic"] == {"vae": str(version_root / "synthetic" / "vae")}
    synthetic = load_manifest(DatasetManifest, made["synthetic"]["vae"], "dataset")
    assert synthetic is not None
    assert (synthetic.rows("train"), synthetic.parents["model"]) == (30, champion.digest)


def _check_runs(root: Path) -> None:
    """In MLflow the retrain, killed once, is one run, and its stages' runs are parts of it."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("genmod")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "retrain v2"]
    assert (parent.info.status, parent.data.tags["genmod.version"]) == ("FINISHED", "2")
    parts = {
        str(run.info.run_name): run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
        for run in sorted(runs, key=lambda run: run.info.start_time)
    }  # of runs with the same name, the last one
    for name in ("shard data v2", "train vae", "sample vae", "evaluate vae", "promote vae"):
        assert parts[name], name


def _kill_after_training(recipe: Path, version_root: Path) -> None:
    """Retrain in a process of its own, and kill that when the new model is there.

    Meanwhile another one waits for a sign of life of the first, gets one, and leaves the work to it.
    """
    command = [sys.executable, "-m", "pipelines", "retrain", "--recipe", str(recipe)]
    first = subprocess.Popen(
        [*command, "--address", "local", "--set", "cluster.cpus=2", "--set", "retrain.lease_s=60"],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert first.stderr is not None
    try:
        deadline_s = time.monotonic() + TIMEOUT_S
        while not (version_root / "models" / "vae" / "model.json").exists():
            assert first.poll() is None, first.stderr.read().decode()
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGSTOP)  # else it may end before the other one has started
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as second:
            assert second.stderr is not None
            until = _lines_until("shows no sign of life", second.stderr)
            assert f"pid {first.pid}, " in until[-1]
            os.killpg(first.pid, signal.SIGCONT)
            _lines_until("retrain: already running: ", second.stderr)
            os.killpg(first.pid, signal.SIGKILL)
            assert second.wait(TIMEOUT_S) == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
        first.wait(60)
        first.stderr.close()


def _lines_until(text: str, stream: IO[str]) -> list[str]:
    """Lines of a process up to one with this text."""
    lines: list[str] = []
    for line in stream:
        lines.append(line)
        if text in line:
            return lines
    pytest.fail(f"the process ended without {text!r}: {lines}")


def _check_version(root: Path, version_root: Path) -> None:
    """Check the rows that a version adds, and that it is evaluated as version 1 was."""
    old = load_manifest(DatasetManifest, str(root / "data"), "dataset")
    new = load_manifest(DatasetManifest, str(version_root / "data"), "dataset")
    assert old is not None
    assert new is not None
    rows = [sum(shard.rows for shard in manifest.shards) for manifest in (old, new)]
    assert rows == [600, 1100]
    shared = {shard.tar.sha256 for shard in old.shards}
    assert shared < {shard.tar.sha256 for shard in new.shards}
    written = sum(1 for _ in (version_root / "data").glob("*.tar"))
    assert written == len(new.shards) - len(old.shards)
    protocols = []
    for folder in (root, version_root):
        manifest = load_manifest(Manifest, str(folder / "evaluation" / "vae"), "evaluation")
        assert manifest is not None
        values = [reading.value for reading in metrics_from(manifest.metadata)]
        protocols.append({value.protocol.metric: value.protocol for value in values})
        assert (
            protocols[-1].pop("bits_per_dim").n_real > 0
        )  # of rows that are drawn from each version
    # Each model's samples are compared with all rows that it was trained on.
    copies = [{name: each.pop(name) for name in ("memorisation", "leakage")} for each in protocols]
    assert protocols[0] == protocols[1]
    trained = [each["memorisation"].settings["n_train"] for each in copies]
    assert trained == [manifest.rows("train") for manifest in (old, new)]


def test_a_champion_of_another_protocol_or_other_test_rows_is_evaluated_again_and_may_stay(
    ray_session, place
):
    recipe, root = place
    before = _champion(recipe)
    add_images(root.parent / "images", 1100, 1300)
    changes = (
        "sample.count=90",
        "retrain.reference_version=2",
        "promote.rules.bits_per_dim={max_regression: 1000}",
        "promote.improvements=1",
        "promote.rules.fd.improve_by=0",
        "promote.max_images=150",
    )
    result = _do(recipe, retrain.stage, *changes)
    assert (result["status"], result["version"]) == (DONE, 3)
    version_root = root / "retrain" / "v0003"
    again = version_root / "champion" / "vae" / before.digest[:16]
    adopted = load_manifest(DatasetManifest, str(root / "retrain" / "v0002" / "data"), "dataset")
    assert adopted is not None
    likelihoods = []
    for folder in version_root / "evaluation" / "vae", again / "evaluation":
        manifest = load_manifest(Manifest, str(folder), "evaluation")
        assert manifest is not None
        assert manifest.metadata["samples"]["rows"] == 90
        assert manifest.metadata["reference"]["digest"] == split_digest(adopted, "test")
        values = [each.value for each in metrics_from(manifest.metadata)]
        likelihoods += [each for each in values if each.protocol.metric == "bits_per_dim"]
    _check_likelihoods(root, again, likelihoods)
    assert result["decisions"]["vae"]["promote"] is False
    # Both models were sampled again with more images; the dataset that is published is as it was.
    again = again / "images-150"
    for side in ("candidate", "champion"):
        samples = load_manifest(DatasetManifest, str(again / side / "samples"), "dataset")
        assert samples is not None
        assert samples.rows("train") == 150
    published = load_manifest(Manifest, str(version_root / "decision" / "vae"), "decision")
    assert published is not None
    decided = published.metadata["images"], published.metadata["number"]
    assert decided == (150, 2), "the adopted rows have a count of their own"
    (fresh,) = [gain for gain in published.metadata["fresh"] if gain["metric"].startswith("fd[")]
    assert fresh["outcome"] in ("better", "worse", "no difference"), "on the test rows of version 3"
    assert fresh["rows"] == 90
    assert published.metadata["retrain"] == {"version": 3, "reason": "new rows"}
    with pytest.raises(ConfigError, match="reference_version=9: the dataset has versions 1 to 3"):
        _do(recipe, retrain.stage, "retrain.reference_version=9")
    assert _champion(recipe) == before


def _check_likelihoods(root: Path, again: Path, likelihoods: list[MetricValue]) -> None:
    """Check that the champion was scored again, and that its likelihood is compared row by row."""
    candidate, champion = likelihoods
    assert candidate.protocol == champion.protocol
    old = load_manifest(
        Manifest, str(root / "retrain" / "v0002" / "evaluation" / "vae"), "evaluation"
    )
    assert old is not None
    (own,) = (
        each.value
        for each in metrics_from(old.metadata)
        if each.value.protocol.metric == "bits_per_dim"
    )
    assert own.protocol != champion.protocol, "by which it became the champion"
    comparison = load_manifest(Manifest, str(again / "comparison"), "comparison")
    assert comparison is not None
    gains = differences_from(comparison, str(again))
    (gain,) = [each for each in gains if each.metric.startswith("bits_per_dim[")]
    assert (gain.paired, gain.rows) == (True, champion.protocol.n_real)
    assert gain.gain == pytest.approx(champion.value - candidate.value)


def test_removed_rows_are_left_out_and_what_was_made_of_them_is_listed(ray_session, place):
    recipe, root = place
    before = _champion(recipe)
    assert before is not None
    for path in sorted((root.parent / "images" / "3").iterdir())[:20]:
        path.unlink()
    changes = "retrain.source_changes=rebuild", "retrain.start=both"
    result = _do(recipe, retrain.stage, *changes)
    assert [(cycle["status"], cycle["version"]) for cycle in result["cycles"]] == [
        (DONE, 4),
        (DONE, 5),
    ]
    rebuilt, warm = result["cycles"]
    assert rebuilt["reason"].startswith("20 rows of version 3 were removed")
    assert warm["reason"] == WARM_REASON
    version_root = root / "retrain" / "v0004"
    data = load_manifest(DatasetManifest, str(version_root / "data"), "dataset")
    model = load_manifest(Manifest, str(version_root / "models" / "vae"), "model")
    assert data is not None
    assert model is not None
    assert sum(shard.rows for shard in data.shards) == 1280
    assert model.parents == {"data": data.digest}, "from random weights"
    started = load_manifest(Manifest, str(root / "retrain" / "v0005" / "models" / "vae"), "model")
    champion = model if rebuilt["decisions"]["vae"]["promote"] else before
    assert started is not None
    assert started.parents["start"] == champion.digest
    listed = load_replaced(str(version_root))
    assert listed is not None
    assert {(item.kind, item.version) for item in listed.items} == {
        (kind, version)
        for kind in ("dataset", "model", "synthetic dataset")
        for version in (1, 2, 3)
    }
    evaluation = load_manifest(Manifest, str(version_root / "evaluation" / "vae"), "evaluation")
    assert evaluation is not None
    assert data.digest in evaluation.parents.values(), "evaluated on the rows that are left"
    again = _do(recipe, retrain.stage, *changes)
    assert (again["status"], again["version"]) == (retrain.NOTHING_NEW, 5)


def test_few_new_rows_wait_unless_they_drift(ray_session, place):
    recipe, root = place
    changes = "retrain.min_new_rows=1000", "retrain.drift={false_alarm: 0.01}"

    def check():
        context = Context(config.load_recipe(str(recipe), changes), ("vae",))
        try:
            newest = versions(context)[-1]
            parent = load_previous_version(f"{newest.root}/data", newest.data)
            plan = make_plan(context.recipe.data, context.recipe.seed, parent)
            return plan.rows, new_rows_reason(context, plan, newest)
        finally:
            assert context.tracker.close(TIMEOUT_S)

    add_images(root.parent / "images", 1300, 1350)
    assert check() == (50, None)
    assert _do(recipe, retrain.stage, *changes)["status"] == retrain.NOTHING_NEW
    noise = np.random.default_rng(0).integers(0, 256, (50, 8, 8), dtype=np.uint8)
    for row, pixels in enumerate(noise):
        Image.fromarray(pixels).save(root.parent / "images" / "0" / f"noise{row:02d}.png")
    rows, reason = check()
    assert rows == 100
    assert reason is not None
    assert reason.startswith("drift of 100 new rows: ")
    assert len(list(root.glob("drift/*/vae/drift.json"))) == 2, "each set of rows is scored once"


def test_a_new_class_starts_a_version_of_all_rows(ray_session, place):
    recipe, root = place
    source = root.parent / "images"
    (source / "x").mkdir()
    for path in [*(source / "0").iterdir()][:60]:
        (source / "x" / path.name).write_bytes(path.read_bytes())
    before = len(versions(Context(config.load_recipe(str(recipe)), ("vae",))))
    result = _do(recipe, retrain.stage, "data.new_classes=rebuild", "sample.count=110")
    assert (result["status"], result["version"]) == (DONE, before + 1)
    assert "class 'x' is new with 60 rows" in result["reason"]
    (reason,) = result["decisions"]["vae"]["reasons"]
    assert "lacks class 'x', so limits alone decide: every metric is within its limits" in reason
    champion = _champion(recipe)
    assert champion is not None
    assert champion.root == str(root / "retrain" / f"v{before + 1:04d}" / "models" / "vae")
    made = load_manifest(DatasetManifest, champion.root.replace("models", "samples"), "dataset")
    assert made is not None
    assert made.class_names == (*map(str, range(10)), "x")
    assert made.row_stats(champion.root.replace("models", "samples"))["train"].rows_K == (10,) * 11
