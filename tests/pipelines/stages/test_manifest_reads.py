"""A command reads each manifest once, so that its checks and its work see one state."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from genmod.manifest import Manifest, load_manifest, publish
from pipelines.commands.plan import plan
from pipelines.recipe import recipe as config
from pipelines.recipe.context import ALREADY_DONE, DONE, Context
from pipelines.stages.table import STAGE_FUNCTIONS
from tests.pipelines.manifest_reads import few_reads
from tests.processes import TIMEOUT_S


def with_ray(test):
    """Mark a test that uses the finished run."""
    return pytest.mark.ray(pytest.mark.slow(test))


RECIPE = """
root: {root}
data: {{source: "builtin:digits", shard_rows: 600, splits: {{val: 0.1, test: 0.2}}}}
model:
  vae:
    family: vae
    net: {{latents: 4, widths: [8], embedding: 4}}
    score: {{k: 2, max_rows: 20}}
  gan:
    family: gan
    net: {{generator: {{widths: [8]}}, discriminator: {{widths: [8]}}}}
  edm:
    family: diffusion
    net: {{widths: [8], blocks: 1, attention: [], embedding: 8}}
    sample: {{steps: 2}}
    score: {{steps: 4, draws: 2, max_rows: 20}}
  two-steps:
    family: diffusion
    distills: edm
    net: {{objective: consistency, halve_nimg: 100}}
    sample: {{solver: consistency, steps: 2}}
train:
  nimg: 256
  batch: 64
  log_every_nimg: 128
  checkpoint_every_nimg: 256
  validate_every_nimg: null
  grid_every_nimg: null
sample: {{count: 120, shard_rows: 60}}
score: {{max_rows: 20, calibration: {{split: val, rows: 20}}}}
evaluate:
  images: 100
  memorisation_calibration: 100
  features: {{kind: pca}}
promote:
  improvements: 0
  rules:
    fd: {{max_regression: 0.9, relative: true}}
"""


def test_a_second_read_is_found(tmp_path):
    root = str(tmp_path)
    publish(root, Manifest(kind="scores", fingerprint="work"))
    with few_reads(tmp_path) as reads:
        load_manifest(Manifest, root, "scores")
        load_manifest(Manifest, f"{root}/none", "scores")
    assert set(reads.values()) == {1}

    def read_twice():
        with few_reads(tmp_path):
            load_manifest(Manifest, root, "scores")
            load_manifest(Manifest, root, "scores")

    with pytest.raises(AssertionError, match="read too often"):
        read_twice()


@pytest.fixture(scope="module")
def finished(ray_session, tmp_path_factory):
    """Recipe file and root of a finished ``genmod run``."""
    folder = tmp_path_factory.mktemp("reads")
    recipe, root = folder / "recipe.yaml", folder / "root"
    recipe.write_text(RECIPE.format(root=root))
    root.mkdir()
    dry = run_counted(recipe, root, partial(plan, "run"))
    assert not any(step.done for step in dry)
    assert run_counted(recipe, root, STAGE_FUNCTIONS["run"])["status"] == DONE
    return recipe, root


def run_counted(recipe: Path, root: Path, stage, *assignments: str):
    """The result of a stage, run as a command whose reads of manifests are counted."""
    loaded = config.load_recipe(str(recipe), assignments)
    context = Context(loaded, tuple(loaded.model))
    try:
        with few_reads(root):
            return stage(context)
    finally:
        assert context.tracker.close(TIMEOUT_S)


@with_ray
@pytest.mark.parametrize(
    "stage", ["run", "shard", "train", "distill", "sample", "score", "evaluate"]
)
def test_a_finished_stage(finished, stage):
    recipe, root = finished
    assert run_counted(recipe, root, STAGE_FUNCTIONS[stage])["status"] == ALREADY_DONE


@with_ray
@pytest.mark.parametrize("stage", ["run", "score", "evaluate", "retrain"])
def test_a_dry_run(finished, stage):
    recipe, root = finished
    steps = run_counted(recipe, root, partial(plan, stage))
    undecided = [step for step in steps if not step.done and not step.state.startswith("skipped")]
    assert {step.stage for step in undecided} <= {"promote"}
    for step in steps:
        uses_data = step.stage in ("train", "distill", "sample", "score")
        assert bool(step.data) == (uses_data and not step.state.startswith("skipped"))


@with_ray
def test_a_stage_that_works(finished):
    """Scores that are left to do, of calibration rows that are scored already."""
    recipe, root = finished
    changes = "score.output=more", "score.split=train"
    assert run_counted(recipe, root, STAGE_FUNCTIONS["score"], *changes)["status"] == DONE
    assert run_counted(recipe, root, STAGE_FUNCTIONS["score"], *changes)["status"] == ALREADY_DONE


@with_ray
def test_promote_and_retrain(finished):
    recipe, root = finished
    for stage in ("promote", "promote", "retrain"):
        run_counted(recipe, root, STAGE_FUNCTIONS[stage])


@with_ray
def test_a_finished_run_takes_seconds(finished):
    """On two quiet cores at most 10 s; the time of the process itself, as others may be busy."""
    recipe, _ = finished
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "pipelines", "run", "--recipe", str(recipe), "--json"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1])["status"] == ALREADY_DONE
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20
