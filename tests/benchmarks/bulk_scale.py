"""How bulk sampling grows: planning 100 million images, finding a job of 100,000 units almost or quite done.

The jobs have real manifests and receipts on the tests' S3 server, and a model that is never called. Each step
runs in a process of its own, whose memory beyond the imports is counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from genmod import storage
from genmod.config import canonical_json
from genmod.generation.config import SampleConfig
from genmod.generation.unit import SampleReceipt
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, family
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import FileEntry, ImageSpec, RowStats, ShardEntry, claim, publish
from genmod.receipts import RECEIPTS_FOLDER, SEGMENT_RECEIPTS, write_segment
from genmod.training.publish import publish_model
from genmod.training.state import TrainState
from pipelines.jobs.bulk import BulkOptions, WorkUnit
from pipelines.jobs.job_state import BulkJobState
from pipelines.jobs.sample_plan import SampleJob, SamplePlan, plan_sample
from pipelines.jobs.sampling import bulk_sample_job, sample
from tests.stores import weed

SPEC = ImageSpec(channels=1, height=28, width=28, classes=10)
UNITS, ROWS, DONE, SINGLE = 100_000, 1_000, 0.9, 500
"""Units, images of each, share that is done, and receipts that are in no segment yet."""
QUICK = {"UNITS": 300, "DONE": 0.9, "SINGLE": 20}

STEP = """
import json, sys, time
import psutil
from tests.benchmarks import bulk_scale
def resident_bytes():
    return psutil.Process().memory_info().rss

bulk_scale.UNITS, bulk_scale.DONE, bulk_scale.SINGLE = json.loads(sys.argv[3])
before = resident_bytes()
start_s = time.perf_counter()
kept = getattr(bulk_scale, sys.argv[1])(sys.argv[2])
seconds = time.perf_counter() - start_s
print(json.dumps([seconds, (resident_bytes() - before) / 2**20]))
"""


def _config() -> SampleConfig:
    return SampleConfig(count=UNITS * ROWS, shard_rows=ROWS)


def _job(root: str, out: str = "out") -> SampleJob:
    return SampleJob("vae", f"{root}/model", f"{root}/{out}", {})


def _plan(root: str) -> SamplePlan:
    return plan_sample(_job(root), _config(), seed=0)


def planned(root: str) -> object:
    """Plan the job and divide it into units; the results, so that they are in memory."""
    plan = _plan(root)
    units = plan.request.lanes.units(plan.intervals, plan.config.shard_rows)
    assert len(units) == UNITS
    return plan, units


def resumed(root: str) -> object:
    """Plan the job, find the units that are done, list the tasks that are left."""
    plan = _plan(root)
    state = BulkJobState(bulk_sample_job(plan, ManifestSnapshot()), None)
    tasks = state.tasks(0)
    assert UNITS - round(UNITS * DONE) <= len(tasks) <= UNITS - round(UNITS * DONE) + SINGLE
    return state, tasks


def recognised(root: str) -> object:
    """Run the command where the job is done."""
    job = SampleJob("vae", f"{root}/model", f"{root}/finished", {})
    manifest = sample(job, _config(), seed=0, options=BulkOptions())
    assert manifest.rows("train") == UNITS * ROWS
    return manifest


def _receipt(plan: SamplePlan, unit: WorkUnit, number: int) -> SampleReceipt:
    digests = [f"{number * 2 + each:064x}" for each in (0, 1)]
    stem = f"train-{number * ROWS:012d}-{digests[0][-12:]}"
    tar = FileEntry(path=f"{stem}.tar", size_bytes=3_000_000, sha256=digests[0])
    index = FileEntry(path=f"{stem}.idx.parquet", size_bytes=30_000, sha256=digests[1])
    pixels = ROWS * SPEC.height * SPEC.width
    return SampleReceipt(
        fingerprint=plan.stream,
        parts=unit.parameters["parts"],
        shard=ShardEntry(split="train", rows=ROWS, tar=tar, index=index),
        stats=RowStats(
            rows=ROWS,
            next_index=(number + 1) * ROWS,
            pixels=pixels,
            pixel_sum_C=(pixels * 30,),
            pixel_square_sum_C=(pixels * 3_000,),
            rows_K=(ROWS // 10,) * 10,
        ),
        numerics="cpu avx2, onednn avx2, torch 2.13.0, float32 highest",
    )


def _prepare(root: str) -> None:
    """A model, a job that is partly done, and one that is done."""
    net = family("vae").Config.tiny().model_dump()
    config = ModelConfig(family="vae", net=net, spec=SPEC, stats=DataStats(mean=(0.0,), std=(0.5,)))
    state = TrainState(0, config.build(0), config.build(0), ())
    publish_model(f"{root}/model", config, state, fingerprint="m", parents={}, metadata={})
    plan = _plan(root)
    job = bulk_sample_job(plan, ManifestSnapshot())
    receipts = {unit.name: _receipt(plan, unit, number) for number, unit in enumerate(job.units)}
    names = list(receipts)[: round(UNITS * DONE)]
    claim(plan.out_root, plan.stream)
    gathered = names[: len(names) - SINGLE]
    for first in range(0, len(gathered), SEGMENT_RECEIPTS):
        part = gathered[first : first + SEGMENT_RECEIPTS]
        write_segment(plan.out_root, {name: receipts[name] for name in part})
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: _single(plan.out_root, name, receipts[name]), names))
    finished = plan_sample(_job(root, "finished"), _config(), seed=0)
    manifest = bulk_sample_job(finished, ManifestSnapshot()).finish(receipts, None)
    publish(finished.out_root, manifest)


def _single(root: str, name: str, receipt: SampleReceipt) -> None:
    url = storage.join(root, RECEIPTS_FOLDER, f"{name}.json")
    storage.write_bytes(url, canonical_json(receipt.model_dump(mode="json")))


def _measure(step: str, root: str) -> tuple[float, float]:
    """Seconds and MiB of a step in a new process."""
    command = [sys.executable, "-c", STEP, step, root, json.dumps([UNITS, DONE, SINGLE])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, mib = json.loads(done.stdout.splitlines()[-1])
    return seconds, mib


def _row(name: str, unit: str, ours: float, goal: float) -> dict:
    return {
        "name": f"{name} ({UNITS:,} units of {ROWS:,} images)",
        "unit": unit,
        "ours": ours,
        "peer": goal,
        "peer_name": "goal: at most",
        "ratio": ours / goal,
    }


def _rows(root: str) -> Iterator[dict]:
    goals = {"planned": (0.5, 20), "resumed": (10, 1_000), "recognised": (2, 500)}
    for step, (seconds, mib) in goals.items():
        measured = [_measure(step, root) for _ in range(3)]
        yield _row(step, "seconds", sorted(each[0] for each in measured)[1], seconds)
        yield _row(step, "MiB", sorted(each[1] for each in measured)[1], mib)


def bench() -> list[dict]:
    with weed.running() as store:
        os.environ.update(store.environment())
        root = f"s3://{weed.BUCKET}/bulk-scale-{time.time_ns()}"
        _prepare(root)
        return list(_rows(root))


if __name__ == "__main__":
    print(json.dumps(bench(), indent=2))
