"""A stage where the home does not exist, the user has no name, paths are long and have odd characters."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from mlflow import MlflowClient

from genmod.data.format.verify_dataset import dataset_problems
from genmod.manifest import DatasetManifest, load_manifest
from tests.processes import TIMEOUT_S

RECIPE = """
root: {root}
data: {{source: "builtin:digits", shard_rows: 600}}
model: {{vae: {{family: vae}}}}
"""
OF_OTHERS = ("RAY_", "MLFLOW_", "GENMOD_", "XDG_")
NAMELESS = ("unshare", "--user", "--map-user=54321", "--map-group=54321")


def nameless_user():
    """Words before a command that give it a user without a name, where the system allows that."""
    if shutil.which("unshare") is None:
        return ()
    words = [*NAMELESS, sys.executable, "-c", "import getpass, os; print(os.getuid())"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return NAMELESS if done.stdout.strip() == "54321" else ()


@pytest.mark.slow
@pytest.mark.long
def test_a_stage_finishes_without_a_home_a_name_and_short_paths(tmp_path):
    root, temporary = tmp_path / "Läufe 1 [3]", tmp_path / ("x" * 110)
    temporary.mkdir()
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(root=root))
    kept = {
        key: text
        for key, text in os.environ.items()
        if not key.startswith(OF_OTHERS) and key not in ("USER", "LOGNAME")
    }
    done = subprocess.run(
        [*nameless_user(), sys.executable, "-m", "pipelines", "shard", "--recipe", "recipe.yaml"],
        cwd=tmp_path, env=kept | {"HOME": "/nonexistent", "TMPDIR": str(temporary)},
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    manifest = load_manifest(DatasetManifest, f"{root}/data", "dataset")
    assert manifest is not None
    assert sum(shard.rows for shard in manifest.shards) == 1797
    assert list(dataset_problems(f"{root}/data", manifest)) == []
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiments = [each.experiment_id for each in client.search_experiments()]
    assert [run.info.status for run in client.search_runs(experiments)] == ["FINISHED"]
