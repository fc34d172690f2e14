"""``genmod retrain`` started while another one works: one line, exit 0, before torch or Ray is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from genmod.errors import StorageError
from genmod.lease import LeaseLost, acquire
from pipelines.commands.alone import ALREADY_RUNNING, run_alone
from pipelines.recipe.progress import ProgressDisplay
from tests.stores.proxy import Fault

RECIPE = """
root: {root}
data: {{source: "folder:images"}}
model: {{vae: {{family: vae}}}}
retrain: {{lease_s: {lease_s}}}
"""
ROOT = Path(__file__).parents[3]


def write_recipe(folder, root, lease_s=6):
    path = folder / "my.yaml"
    path.write_text(RECIPE.format(root=root, lease_s=lease_s))
    return str(path)


@pytest.fixture
def recipe(tmp_path):
    """A recipe whose root looks as if version 1 were there."""
    (tmp_path / "root" / "data").mkdir(parents=True)
    (tmp_path / "root" / "data" / "dataset.json").write_text("{}")
    return write_recipe(tmp_path, tmp_path / "root")


def start(recipe, *options):
    words = [sys.executable, *options, "-m", "pipelines", "retrain", "--recipe", recipe, "--json"]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def test_others_say_who_works_and_how_far_it_is(recipe, tmp_path):
    with acquire(
        str(tmp_path / "root"), "retrain", 6, progress=lambda: "train vae: 3/9 images (33%)"
    ) as lease:
        processes = [start(recipe), start(recipe), start(recipe, "-X", "importtime")]
        for process in processes:
            out, err = process.communicate(timeout=600)
            assert process.returncode == 0
            result = json.loads(out.splitlines()[-1])
            assert (result["status"], result["lease"]) == (ALREADY_RUNNING, lease.number)
            assert result["progress"] == "train vae: 3/9 images (33%)"
            (line,) = [line for line in err.splitlines() if not line.startswith("import time:")]
            assert line.startswith("retrain: already running: ")
            assert f"pid {result['holder']['pid']}" in line
            assert line.endswith("train vae: 3/9 images (33%)")
        modules = {line.rpartition("|")[2].strip() for line in err.splitlines()}
        assert "genmod.lease.lease" in modules
        assert not modules & {"torch", "ray", "mlflow"}
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["data", "leases"]


def test_the_error_of_a_frozen_retrain_that_was_replaced(recipe, tmp_path):
    """It is interrupted as by a signal, and says who works now instead."""

    def work(lease):
        with lease._lock:
            taken = lease._entry.model_copy(update={"number": 2})
            assert lease._log.append(2, taken)
        with pytest.raises(LeaseLost):
            lease.create(str(tmp_path / "root" / "decision.json"), b"{}")
        raise KeyboardInterrupt

    with pytest.raises(LeaseLost, match="works now; nothing more was published"):
        run_alone("retrain", recipe, (), ProgressDisplay(), work)
    assert not (tmp_path / "root" / "decision.json").exists()


def test_an_interrupted_one_gives_the_lease_back(recipe, tmp_path):
    def work(lease):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_alone("retrain", recipe, (), ProgressDisplay(), work)
    with acquire(str(tmp_path / "root"), "retrain", 3600) as lease:
        assert lease.number == 3


def test_without_a_dataset_nothing_is_written(tmp_path):
    recipe = write_recipe(tmp_path, tmp_path / "none")
    leases = []
    run_alone("retrain", recipe, (), ProgressDisplay(), lambda lease: leases.append(lease) or {})
    assert leases == [None]
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_store_without_create_if_absent_is_refused(tmp_path, proxied_root, proxy):
    from genmod import storage

    storage.write_bytes(storage.join(proxied_root, "data", "dataset.json"), b"{}")
    proxy.faults = [Fault("unconditional", method="PUT", times=100)]
    recipe = write_recipe(tmp_path, proxied_root)
    with pytest.raises(StorageError, match="does not enforce create-if-absent"):
        run_alone("retrain", recipe, (), ProgressDisplay(), lambda lease: {})
