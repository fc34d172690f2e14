"""The commands with a family from outside the package: one file that only GENMOD_FAMILIES names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from genmod.interface.external import FAMILIES_VARIABLE
from genmod.interface.model_store import load_model
from tests.processes import TIMEOUT_S

ROOT = Path(__file__).parents[2]
RECIPE = """
data: {source: "builtin:digits"}
model: {toy: {family: coins, net: {start: -1}}}
train: {nimg: 20000, batch: 64, optim: {lr: 0.02}}
sample: {count: 60}
score: {split: test}
evaluate: {features: {kind: pca}}
tracking: {enabled: false}
cluster: {cpus: 2}
"""


def genmod(folder, *words, **environment):
    """Run a command of its own process; its exit code, JSON answer and standard error."""
    command = [sys.executable, "-m", "pipelines", *words, "--recipe", str(folder / "toy.yaml")]
    done = subprocess.run(
        [*command, "--set", f"root={folder}/out", "--json"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines, done.stderr[-3000:]
    return done.returncode, json.loads(lines[-1]), done.stderr


def test_without_the_variable_the_family_is_unknown(tmp_path):
    (tmp_path / "toy.yaml").write_text(RECIPE)
    environment = {name: value for name, value in os.environ.items() if name != FAMILIES_VARIABLE}
    code, answer, _ = genmod(tmp_path, "run", "--dry-run", **environment)
    assert code == 2
    assert "no family is called 'coins'" in answer["error"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_the_whole_pipeline_works_with_a_family_from_outside(tmp_path):
    (tmp_path / "toy.yaml").write_text(RECIPE)
    code, answer, messages = genmod(tmp_path, "run", **os.environ)
    assert (code, answer["status"]) == (0, "done"), messages[-3000:]
    stages = answer["stages"]
    assert list(stages) == ["shard", "train", "sample", "score", "evaluate"]
    assert type(load_model(f"{tmp_path}/out/models/toy")).__module__ == "genmod.models.coins"
    evaluation = json.loads(Path(f"{tmp_path}/out/evaluation/toy/evaluation.json").read_text())
    assert "coins" in json.dumps(evaluation), "the scores' estimator"
    code, answer, messages = genmod(tmp_path, "run", **os.environ)
    assert (code, answer["status"]) == (0, "already done"), messages[-3000:]
