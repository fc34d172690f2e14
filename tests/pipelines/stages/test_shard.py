"""The shard stage on Ray: the same bytes for any number of workers; finished shards are kept."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from genmod.data.reading.reader import iter_split, open_dataset, split_reader
from genmod.data.sharding.plan import make_plan
from genmod.data.sharding.previous_version import load_previous_version
from genmod.data.sources.config import DataConfig
from genmod.errors import ConfigError, DataError
from genmod.manifest import SPLITS
from pipelines.cli import main
from pipelines.commands.verify import verify
from pipelines.jobs.sharding import shard
from pipelines.recipe import recipe as config
from pipelines.recipe.context import Context
from pipelines.stages.shard import stage
from tests.processes import TIMEOUT_S

DIGITS = DataConfig(source="builtin:digits", shard_rows=200)


class Recorder:
    """Keeps the calls of the progress protocol."""

    def __init__(self):
        self.calls = []

    def update(self, *call):
        self.calls.append(call)


def digests(folder):
    """SHA-256 of each file, except pending files that a killed process left."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".pending-")
    }


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.is_file()}


@pytest.fixture(scope="module")
def done(ray_session, tmp_path_factory):
    """(folder, manifest) of the digits, sharded by one worker."""
    folder = tmp_path_factory.mktemp("shard") / "one"
    return folder, shard(DIGITS, str(folder), seed=3, workers=1)


@pytest.mark.ray
def test_two_workers_write_the_same_files_as_one(done, tmp_path):
    folder, manifest = done
    progress = Recorder()
    other = shard(DIGITS, str(tmp_path / "two"), seed=3, workers=2, progress=progress)
    assert other == manifest
    assert digests(tmp_path / "two") == digests(folder)
    assert progress.calls[0] == ("shard", 0, 1797, "images")
    assert progress.calls[-1] == ("shard", 1797, 1797, "images")
    rows = [done for _, done, _, _ in progress.calls]
    assert rows == sorted(rows)
    assert verify(str(folder)) == []


@pytest.mark.ray
def test_the_plan_describes_the_dataset(done):
    _, manifest = done
    plan = make_plan(DIGITS, 3).summary()
    assert (plan.rows, plan.shards) == (1797, len(manifest.shards))
    assert plan.rows_by_split == {split: manifest.rows(split) for split in SPLITS}
    assert plan.spec == manifest.spec
    assert plan.fingerprint == manifest.fingerprint
    size_bytes = sum(entry.tar.size_bytes for entry in manifest.shards)
    assert plan.size_bytes == pytest.approx(size_bytes, rel=0.05)


@pytest.mark.ray
def test_a_second_run_does_nothing_and_another_recipe_is_refused(done):
    folder, manifest = done
    before = times(folder)
    assert shard(DIGITS, str(folder), seed=3) == manifest
    assert times(folder) == before
    with pytest.raises(ConfigError, match="made from other inputs"):
        shard(DIGITS, str(folder), seed=4)
    assert times(folder) == before


@pytest.mark.ray
def test_ray_data_reads_the_tars(done):
    import ray

    folder, manifest = done
    tars = [str(folder / entry.tar.path) for entry in manifest.of_split("val")]
    rows = ray.data.read_webdataset(tars).take_all()
    assert len(rows) == manifest.rows("val")
    by_key = {row["__key__"]: row for row in rows}
    table = pq.read_table(folder / manifest.of_split("val")[0].index.path).to_pylist()
    for line, image in zip(
        table, next(iter_split(str(folder), manifest, "val", 200)).pixels_BCHW, strict=True
    ):
        row = by_key[line["key"]]
        assert int(row["cls"]) == line["label"]
        assert np.array_equal(np.asarray(row["png"]).squeeze(), image[0].numpy())


DRIVER = """
    import os, signal, sys
    from cluster.environment import set_environment
    set_environment()
    from cluster.session import LOCAL, ClusterConfig, connect
    from genmod.data.sources.config import DataConfig
    from pipelines.jobs.sharding import shard

    class Die:
        def update(self, task, done, total, unit):
            if done:
                os.kill(os.getpid(), signal.SIGKILL)

    connect(ClusterConfig(address=LOCAL, cpus=2))
    data = DataConfig.model_validate_json(sys.argv[1])
    shard(data, sys.argv[2], seed=3, workers=2, progress=Die())
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_stage_whose_driver_was_killed_resumes(done, tmp_path):
    folder, manifest = done
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), DIGITS.model_dump_json()]
    driver = subprocess.run([*command, str(killed)], timeout=TIMEOUT_S, check=False)
    assert driver.returncode == -signal.SIGKILL
    time.sleep(2)  # its workers end
    receipts = {path: path.stat().st_mtime_ns for path in killed.glob("receipts/*.json")}
    assert 0 < len(receipts) < len(manifest.shards)
    assert not (killed / "dataset.json").exists()
    torn = next(
        e for e in manifest.shards if not (killed / f"receipts/{e.tar.path[:-4]}.json").exists()
    )
    (killed / torn.tar.path).write_bytes(b"half a tar")
    assert shard(DIGITS, str(killed), seed=3) == manifest
    assert {path: path.stat().st_mtime_ns for path in receipts} == receipts
    assert digests(killed) == digests(folder)


def kill_a_busy_worker():
    """Kill a worker that is writing a shard; whether there was one."""
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith("ray::_make"):
                process.kill()
                return True
        except psutil.NoSuchProcess:
            continue
    return False


@pytest.mark.ray
@pytest.mark.parametrize("seed", [0, 1])
def test_workers_that_are_killed_at_random_times_are_replaced(ray_session, tmp_path, seed):
    data = DataConfig(source="builtin:mnist5k", shard_rows=20)
    quiet = shard(data, str(tmp_path / "quiet"), seed=0)
    assert quiet is not None
    manifests = []
    stage = threading.Thread(
        target=lambda: manifests.append(shard(data, str(tmp_path / "d"), seed=0, workers=2))
    )
    chance = random.Random(seed)
    stage.start()
    killed = 0
    while stage.is_alive() and killed < 3:
        # the first one at once: on a fast machine the whole stage takes half a second
        if kill_a_busy_worker():
            killed += 1
            time.sleep(chance.uniform(0, 0.2))
    stage.join(300)
    assert killed > 0
    assert manifests == [quiet]
    assert digests(tmp_path / "d") == digests(tmp_path / "quiet")
    assert verify(str(tmp_path / "d")) == []


@pytest.mark.ray
def test_a_shard_that_needs_more_memory_than_any_node_is_refused_at_once(ray_session, tmp_path):
    import ray

    np.savez(tmp_path / "a.npz", x=np.zeros((60, 4, 4), np.uint8))
    data = DataConfig(source=f"npz:{tmp_path}/a.npz")
    plan = make_plan(data, 0)
    huge = replace(plan, scan=replace(plan.scan, max_fetch_bytes=1 << 50))
    with pytest.raises(ConfigError, match=r"the largest node has \d+ MiB; set data.shard_rows"):
        shard(data, str(tmp_path / "d"), seed=0, plan=huge)
    assert not (tmp_path / "d").exists()
    assert shard(data, str(tmp_path / "d"), seed=0, plan=plan) is not None
    assert plan.task_bytes < ray.cluster_resources()["memory"]


@pytest.mark.ray
def test_too_many_refused_inputs_stop_the_stage_without_a_dataset(
    ray_session, tmp_path, png_folder
):
    for name in ("x.png", "y.png"):
        (png_folder / "c0" / name).write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    data = DataConfig(source=f"folder:{png_folder}", max_quarantined=0.01, image_size=6, channels=1)
    root = tmp_path / "d"
    with pytest.raises(DataError, match=r"2 of 42 inputs are rejected.*corrupt|not a readable"):
        shard(data, str(root), seed=0)
    assert not (root / "dataset.json").exists()
    assert pq.read_table(root / "quarantine.parquet").num_rows == 2
    lenient = data.model_copy(update={"max_quarantined": 0.1})
    manifest = shard(lenient, str(root), seed=0)
    assert (manifest.quarantined, sum(manifest.rows(s) for s in SPLITS)) == (2, 40)


@pytest.mark.ray
def test_a_source_that_changes_during_the_stage_is_not_retried(ray_session, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((50, 4, 4), np.uint8))
    data = DataConfig(source=f"npz:{tmp_path}/a.npz", shard_rows=10)

    class Change(Recorder):
        def update(self, *call):
            if not self.calls:  # after the plan, before the first task
                np.savez(tmp_path / "a.npz", x=np.ones((50, 4, 4), np.uint8))
            super().update(*call)

    with pytest.raises(DataError, match="changed while it was sharded"):
        shard(data, str(tmp_path / "d"), seed=0, progress=Change())


@pytest.mark.ray
def test_a_larger_source_is_sharded_from_its_new_rows(ray_session, tmp_path):
    def write(count):
        pixels = np.random.default_rng(0).integers(0, 256, (900, 4, 4), dtype=np.uint8)
        np.savez(tmp_path / "a.npz", x=pixels[:count], y=np.arange(count) % 3)

    write(400)
    data = DataConfig(source=f"npz:{tmp_path}/a.npz", shard_rows=100)

    def extend(name, previous, previous_name):
        version = load_previous_version(str(tmp_path / previous_name), previous)
        plan = make_plan(data, 0, version)
        return shard(data, str(tmp_path / name), seed=0, plan=plan)

    v1 = shard(data, str(tmp_path / "v1"), seed=0)
    assert extend("v2", v1, "v1") is None
    assert not (tmp_path / "v2").exists()
    write(900)
    v2 = extend("v2", v1, "v1")
    assert sum(v2.rows(split) for split in SPLITS) == 900
    assert v2.parents["dataset"] == v1.digest
    assert verify(str(tmp_path / "v2")) == []
    again = extend("v2", v1, "v1")
    assert again == v2
    assert sum(len(b) for b in iter_split(str(tmp_path / "v2"), v2, "train", 64)) == v2.rows(
        "train"
    )
    assert extend("v3", v2, "v2") is None


RECIPE = """
root: {folder}/root
data: {{source: "npz:{folder}/a.npz", shard_rows: 100}}
tracking: {{enabled: false}}
model:
  small: {{family: vae, net: {{widths: [4]}}}}
"""


@pytest.mark.ray
def test_append_publishes_the_next_version(ray_session, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (900, 8, 8), dtype=np.uint8)
    (tmp_path / "r.yaml").write_text(RECIPE.format(folder=tmp_path))

    def command(count, *words):
        np.savez(tmp_path / "a.npz", x=pixels[:count], y=np.arange(count) % 3)
        recipe = str(tmp_path / "r.yaml")
        if words:  # the command itself would close the Ray that all tests share
            options = ["--recipe", recipe, "--json", "--set", "data.append=true", *words]
            assert main(["shard", *options]) == 0
            return json.loads(capsys.readouterr().out.splitlines()[-1])
        return stage(Context(config.load_recipe(recipe, ["data.append=true"]), ("small",)))

    first = command(400)
    assert (first["status"], first["output"]) == ("done", str(tmp_path / "root" / "data"))
    before = times(tmp_path / "root")
    again = command(400)
    assert (again["status"], again["version"]) == ("nothing new", 1)
    planned = command(600, "--dry-run")
    (step,) = planned["plan"]
    assert (step["work"]["images"], step["done"]) == (200, False)
    assert times(tmp_path / "root") == before
    second = command(600)
    assert (second["status"], second["version"]) == ("done", 2)
    assert second["fingerprint"] == step["fingerprint"]
    third = command(900)
    assert (third["version"], third["output"]) == (
        3,
        str(tmp_path / "root" / "retrain" / "v0003" / "data"),
    )
    datasets = [open_dataset(answer["output"]) for answer in (first, second, third)]
    assert [sum(d.rows(split) for split in SPLITS) for d in datasets] == [400, 600, 900]
    assert [d.parents.get("dataset") for d in datasets] == [None, *(d.digest for d in datasets[:2])]
    keys = [
        {split: split_reader(answer["output"], d, split).keys() for split in SPLITS}
        for answer, d in zip((first, second, third), datasets, strict=True)
    ]
    for split in SPLITS:
        for old, new in pairwise(keys):
            assert new[split][: len(old[split])] == old[split]
    assert len({key for split in SPLITS for key in keys[2][split]}) == 900
    changed = {path for path, at in times(tmp_path / "root").items() if before.get(path, at) != at}
    assert changed == set()
    assert verify(str(tmp_path / "root")) == []
    assert command(900)["status"] == "nothing new"


@pytest.fixture
def png_folder(tmp_path):
    """40 images of 6x6 in two classes."""
    from PIL import Image

    folder = tmp_path / "pngs"
    for number in range(40):
        pixels = np.full((6, 6), number, np.uint8)
        (folder / f"c{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"c{number % 2}" / f"{number}.png")
    return folder
