"""The whole way with an S3 root: a real store, through a proxy that fails every few requests, in a process
and a Ray of its own. No credential turns up in anything that it leaves.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from cluster.private_folder import PREFIX
from genmod.config import as_json
from genmod.data.reading.reader import iter_split
from genmod.data.sharding.ingest import make_shard
from genmod.data.sharding.plan import make_plan
from genmod.interface.registry import families, family
from genmod.manifest import DatasetManifest, Manifest, require
from pipelines.commands.verify import verify
from pipelines.recipe import recipe as config
from tests.processes import TIMEOUT_S
from tests.stores.weed import BUCKET, client

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FAULTS = ("500", "refuse", "cut", "503", "lose", "silence", "500", "cut")
EVERY = 19


@pytest.fixture
def folder():
    """A short name: Ray keeps sockets below it."""
    folder = Path(tempfile.mkdtemp(prefix="gmrun-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def write_recipe(folder, root):
    name = families()[-1]
    net = as_json(family(name).Config.tiny())
    tree = {
        "root": root,
        "data": {
            "source": "builtin:digits",
            "shard_rows": 600,
            "splits": {"val": 0.1, "test": 0.1},
        },
        "model": {name: {"family": name, "net": net}},
        "train": {"nimg": 256, "batch": 32, "workers": 1, "grid_every_nimg": None},
        "sample": {"count": 24, "shard_rows": 12, "micro_batch": 12},
        "score": {"max_rows": 8, "rows_per_task": 4, "micro_batch": 4},
        "evaluate": {"images": 24, "features": {"kind": "pca"}},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "cluster": {"address": "local", "cpus": 2},
        "storage": {
            "read_timeout_s": 3,
            "cache": {"folder": f"{folder}/cache", "size_bytes": 50_000_000},
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def genmod(folder, environment, *words):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_ADDRESS"))}
    kept |= environment | {"RAY_TMPDIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *words, "--json"],
        env=kept, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


@pytest.mark.long
def test_a_whole_run_on_a_store_that_fails(store, proxy, proxied_root, folder):
    proxy.every, proxy.cycle = EVERY, FAULTS
    path = write_recipe(folder, proxied_root)
    done = genmod(folder, store.environment(proxy.endpoint), "run", "--recipe", path)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (answer["stage"], answer["status"]) == ("run", "done")
    assert set(proxy.injected) == set(FAULTS)

    proxy.every = 0
    recipe = config.load_recipe(path)
    data = recipe.at("data")
    manifest = require(DatasetManifest, data, "dataset", "shard")
    assert verify(proxied_root) == []
    assert shas(manifest) == local_shas(recipe, folder)
    rows = [
        int(i)
        for split in ("train", "val", "test")
        for b in iter_split(data, manifest, split, 64)
        for i in b.index_B
    ]
    assert len(rows) == 1797
    (name,) = recipe.model
    samples = require(DatasetManifest, recipe.at("samples", name), "dataset", "sample")
    assert sum(shard.rows for shard in samples.shards) == 24
    assert require(Manifest, recipe.at("scores", name), "scores", "score").metadata["n"] == 8

    kept_by_workers = [file.name for file in (folder / "cache").rglob("*") if len(file.name) == 64]
    assert set(kept_by_workers) & {shard.tar.sha256 for shard in manifest.shards}
    check_that_no_file_contains_the_secret(store, folder, proxied_root, done.stdout + done.stderr)


def shas(manifest):
    return sorted(entry.sha256 for shard in manifest.shards for entry in (shard.tar, shard.index))


def local_shas(recipe, folder):
    """Digests of the shards that the same plan writes to local files, without faults and without Ray."""
    plan, root = make_plan(recipe.data, recipe.seed), str(folder / "local")
    receipts = [make_shard(plan.job(planned, root)) for planned in plan.shards]
    return sorted(e.sha256 for r in receipts for e in (r.shard.tar, r.shard.index))


def check_that_no_file_contains_the_secret(store, folder, root, output):
    secret = store.secret.encode()
    assert secret not in output.encode()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert list(folder.glob(f"{PREFIX}*")) == []  # Ray's logs were removed with its folder
    assert any(path.name == "mlflow.db" for path in files)
    assert [path for path in files if secret in path.read_bytes()] == []
    s3 = client(store)
    prefix = root.removeprefix(f"s3://{BUCKET}/")
    listing = s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    assert not listing["IsTruncated"]
    keys = [entry["Key"] for entry in listing["Contents"] if entry["Size"]]
    assert any(key.endswith("dataset.json") for key in keys)
    assert any(key.endswith("model.json") for key in keys)
    bodies = {key: s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}
    assert [key for key, body in bodies.items() if secret in body] == []
