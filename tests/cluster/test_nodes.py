"""A node of a Ray cluster is lost during each stage: the results equal those of an undisturbed run."""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from genmod.data.order.training_order import MixturePart, OrderConfig, make_training_order
from genmod.data.reading.training_stream import TrainingStream
from genmod.manifest import DatasetManifest, require
from genmod.training.metric_log import read_metrics
from pipelines.recipe import recipe as config
from pipelines.recipe.context import DONE, Context
from pipelines.stages import run
from tests.processes import TIMEOUT_S, free_ports, kill_marked

BINS = Path(sys.executable).parent
MARK = "GENMOD_TEST_NODE"
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]

RECIPE = """
root: {root}
seed: 3
data: {{source: "builtin:digits", shard_rows: 20}}
model:
  vae: {{family: vae, net: {{latents: 4, widths: [8]}}}}
train: {{nimg: 24000, batch: 16, workers: 2, checkpoint_every_nimg: 1600, max_failures: 3}}
sample: {{count: 1200, shard_rows: 10, micro_batch: 20, workers: 2}}
score: {{split: val, workers: 2}}
tracking: {{enabled: false}}
"""

QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "3",
}
"""Makes Ray notice a lost node within seconds."""


class Cluster:
    """A head and nodes of one CPU each on this machine; each node can be killed at once."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gmn-"))  # short: a socket's path has a limit
        self.port, *jobs_ports = free_ports(3)
        self.environment = os.environ | QUICK | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment |= {"RAY_AUTH_MODE": "token", "HOME": str(self.folder)}
        self.environment.pop("RAY_ADDRESS", None)
        self.seen = self.folder / "rows"
        self.seen.mkdir()
        self.environment["GENMOD_TEST_ROWS"] = str(self.seen)
        self.marks: list[str] = []
        dashboard = f"--dashboard-port={jobs_ports[0]}", "--include-dashboard=false"
        client = f"--ray-client-server-port={jobs_ports[1]}"
        self._start("--head", f"--port={self.port}", client, *dashboard)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add_node(self) -> str:
        return self._start(f"--address={self.address}")

    def _start(self, *options: str) -> str:
        mark = secrets.token_hex(8)
        self.marks.append(mark)
        names = ("node-manager", "object-manager", "dashboard-agent-listen")
        names = (*names, "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
        ports = zip(names, free_ports(len(names)), strict=True)
        log = self.folder / f"{mark}.log"
        with log.open("wb") as stream:
            started = subprocess.run(
                [
                    *(f"{BINS}/ray", "start", "--disable-usage-stats", *options, "--num-cpus=1"),
                    *(f"--{name}-port={port}" for name, port in ports),
                    *("--min-worker-port=0", "--max-worker-port=0"),
                    *("--object-store-memory=100000000", f"--temp-dir={self.folder}/ray"),
                ],
                env=self.environment | {MARK: mark},
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=120,
                check=False,
            )
        assert started.returncode == 0, log.read_text()[-2000:]
        return mark

    def close(self) -> None:
        for mark in self.marks:
            kill_marked(MARK, mark)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def cluster():
    running = Cluster()
    try:
        yield running
    finally:
        running.close()


def _wait(
    driver: subprocess.Popen[bytes], happened: Callable[[], bool], what: str, log: Path
) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while not happened():
        assert driver.poll() is None, f"{what}: {log.read_text()[-3000:]}"
        assert time.monotonic() < end_s, f"{what} did not happen: {log.read_text()[-3000:]}"
        time.sleep(0.01)


def _digests(root: Path) -> dict[str, str]:
    manifests = ["data/dataset.json", "models/vae/model.json", "samples/vae/dataset.json"]
    manifests += ["scores/vae/scores.json"]
    return {path: json.loads((root / path).read_text())["digest"] for path in manifests}


def test_a_node_is_lost_in_each_stage(cluster, ray_session, tmp_path):
    quiet, root, recipe = tmp_path / "quiet", tmp_path / "root", tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=root))
    context = Context(config.load_recipe(str(recipe), [f"root={quiet}"]), ("vae",))
    assert run.stage(context)["status"] == DONE
    context.close()

    node, log = cluster.add_node(), tmp_path / "log"
    command = [sys.executable, "-m", "pipelines", "run", "--recipe", str(recipe)]
    with log.open("wb") as stream:
        driver = subprocess.Popen(
            [*command, "--address", cluster.address],
            env=cluster.environment,
            stdout=stream,
            stderr=stream,
        )
    chance = random.Random(0)
    stages = {
        "sharding": lambda: any(root.glob("data/receipts/*.json")),
        "training": lambda: any(root.glob("models/vae/checkpoints/*")),
        "sampling": lambda: any(root.glob("samples/vae/receipts/*.json")),
    }
    ends = {
        "sharding": root / "data" / "dataset.json",
        "training": root / "models" / "vae" / "model.json",
        "sampling": root / "samples" / "vae" / "dataset.json",
    }
    try:
        for stage, started in stages.items():
            _wait(driver, started, stage, log)
            assert not ends[stage].exists(), f"{stage} was over before its node could be killed"
            time.sleep(chance.random())  # at any moment of the stage, or in the next one's first
            kill_marked(MARK, node)
            node = cluster.add_node()
        assert driver.wait(TIMEOUT_S) == 0, log.read_text()[-3000:]
    finally:
        driver.kill()
        driver.wait(60)
    assert _digests(root) == _digests(quiet)


ELASTIC = """
root: {root}
seed: 3
data: {{source: "builtin:digits", shard_rows: 20}}
model:
  rows: {{family: faulty}}
train:
  nimg: 120000
  batch: 24
  workers: {{min: 1, max: 3}}
  checkpoint_every_nimg: 2400
  log_every_nimg: 2400
  validate_every_nimg: null
  grid_every_nimg: null
  max_failures: 9
tracking: {{enabled: false}}
"""

DRIVER = """
import sys
from cluster import world
from pipelines.cli import main
world._RESIZE_S = 5.0
sys.exit(main(sys.argv[1:]))
"""


def _rows(seen: Path) -> dict[int, str]:
    """Digest of the row at each position of the stream, as all processes noted them; one of each."""
    found: dict[int, str] = {}
    for path in seen.iterdir():
        for line in path.read_text().splitlines():
            index, digest = line.split()
            assert found.setdefault(int(index), digest) == digest, path.name
    return found


def test_the_number_of_workers_follows_the_nodes(cluster, tmp_path):
    """Three workers, then one, then three in one run: each position of the stream has the same row."""
    root, seen, recipe = tmp_path / "root", cluster.seen, tmp_path / "recipe.yaml"
    recipe.write_text(ELASTIC.format(root=root))
    nodes, log = [cluster.add_node(), cluster.add_node()], tmp_path / "log"
    words = ["--recipe", str(recipe), "--address", cluster.address]
    families = str(Path(__file__).parents[1] / "families")
    environment = cluster.environment | {"GENMOD_FAMILIES": families}

    def newest(size: int) -> float:
        """When a process of a group of this size last wrote a row."""
        return max((path.stat().st_mtime for path in seen.glob(f"{size}-*")), default=0.0)

    with log.open("wb") as stream:
        code = [sys.executable, "-c", DRIVER]
        subprocess.run(
            [*code, "shard", *words], env=environment, stdout=stream, stderr=stream, check=True
        )
        driver = subprocess.Popen(
            [*code, "train", *words], env=environment, stdout=stream, stderr=stream
        )
    try:
        checkpoints = root / "models" / "rows" / "checkpoints"
        _wait(driver, lambda: newest(3) > 0 and any(checkpoints.glob("*")), "three workers", log)
        for node in nodes:
            kill_marked(MARK, node)
        _wait(driver, lambda: newest(1) > 0, "one worker", log)
        lost_s = time.time()
        for _ in nodes:
            cluster.add_node()
        _wait(driver, lambda: newest(3) > lost_s, "three workers again", log)
        assert driver.wait(2 * TIMEOUT_S) == 0, log.read_text()[-3000:]
    finally:
        driver.kill()
        driver.wait(60)
    data = require(DatasetManifest, str(root / "data"), "dataset", "shard")
    parts = [MixturePart(str(root / "data"), data, 1.0)]
    order = make_training_order(parts, "train", OrderConfig(), seed=3, global_batch=24)
    alone = TrainingStream(str(root / "data"), data, "train", global_batch=24, training_order=order)
    found = _rows(seen)
    for start in range(0, 120_000, 24):
        for row, pixels in enumerate(next(alone).pixels_BCHW):
            digest = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
            assert found.pop(start + row) == digest, start + row
    assert not found
    points = [point.nimg for point in read_metrics(str(root / "models" / "rows"))]
    assert points == list(range(2400, 120_001, 2400)), "no point is lost or doubled"


ASK = """
import sys
from cluster.environment import set_environment
set_environment()
from cluster.nodes import on_each_node, usable_nodes
from cluster.session import ClusterConfig, connect, disconnect
from genmod.numerics import numeric_class
connect(ClusterConfig(address=sys.argv[1]))
print(len(usable_nodes({})), flush=True)
input()
listed = len(usable_nodes({}))
print("listed", listed, "answers", len(on_each_node(numeric_class, "cpu", labels={})), flush=True)
disconnect()
"""


def test_a_node_that_is_lost_while_it_is_asked_is_left_out(cluster):
    """Ray lists it for a moment after its end."""
    node = cluster.add_node()
    driver = subprocess.Popen(
        [sys.executable, "-c", ASK, cluster.address],
        env=cluster.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert driver.stdin is not None
    assert driver.stdout is not None
    assert driver.stdout.readline() == "2\n"
    kill_marked(MARK, node)
    output, _ = driver.communicate("now\n", timeout=TIMEOUT_S)
    assert driver.returncode == 0
    assert "listed 2 answers 1" in output.splitlines()
