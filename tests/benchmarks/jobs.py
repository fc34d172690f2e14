"""A bulk job's piece, written and committed, against the model's bare call on the same rows."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from genmod import storage
from genmod.config import as_json
from genmod.data.format.shards import Row, write_shard
from genmod.data.reading.reader import RowReader
from genmod.generation.config import SampleConfig
from genmod.interface.model import DataStats
from genmod.interface.model_store import load_model
from genmod.interface.registry import ModelConfig, family
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import DatasetManifest, ImageSpec, dataset_metadata, publish
from genmod.rng import rng_for
from genmod.scoring.config import ScoreConfig
from genmod.scoring.work_units import shard_slices
from genmod.training.publish import publish_model
from genmod.training.state import TrainState
from pipelines.jobs.sample_plan import SampleJob, plan_sample
from pipelines.jobs.sampling import SampleActor, bulk_sample_job
from pipelines.jobs.score_plan import ScoreJob, plan_score
from pipelines.jobs.scoring import ScoreActor

SPEC = ImageSpec(channels=1, height=28, width=28, classes=10)
SAMPLES, SCORES, MICRO = 250, 100, 50
ROUNDS = 5
QUICK = {"SAMPLES": 20, "SCORES": 10, "MICRO": 10, "ROUNDS": 1}
ACTOR = {"device": "cpu", "threads": 1, "deadline_s": 600.0}


def _publish_inputs(root: str, name: str) -> None:
    stats = DataStats(mean=(0.0,), std=(0.5,))
    config = ModelConfig(family=name, net={}, spec=SPEC, stats=stats)
    state = TrainState(0, config.build(0), config.build(0), ())
    publish_model(f"{root}/{name}", config, state, fingerprint=name, parents={}, metadata={})
    pixels = rng_for(0, "bench", range(SCORES)).integers(256, 28, 28, 1).to(torch.uint8).numpy()
    rows = [Row(f"k{i}", i, pixels[i], label=i % 10) for i in range(SCORES)]
    shard, metadata = write_shard(f"{root}/data", "val-000000", "val", SPEC, rows)
    manifest = DatasetManifest(
        fingerprint="bench",
        spec=SPEC,
        shards=(shard,),
        metadata=dataset_metadata({"val": metadata}),
    )
    publish(f"{root}/data", manifest)


def _cpu_s(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _paired(name: str, images: int, ours: Callable[[], object], peer: Callable[[], object]) -> dict:
    """Rounds in turn, in one process: the ratio is the median over rounds, so drift cancels."""
    ours(), peer()
    rounds = [(_cpu_s(ours), _cpu_s(peer)) for _ in range(ROUNDS)]
    return {
        "name": name,
        "unit": "images per CPU second",
        "ours": images / statistics.median(mine for mine, _ in rounds),
        "peer": images / statistics.median(theirs for _, theirs in rounds),
        "peer_name": "the bare model call in the same micro-batches",
        "ratio": statistics.median(theirs / mine for mine, theirs in rounds),
    }


def _sample(root: str, name: str) -> dict:
    config = SampleConfig(count=SAMPLES, shard_rows=SAMPLES, micro_batch=MICRO)
    plan = plan_sample(SampleJob(name, f"{root}/{name}", f"{root}/out", {}), config, seed=0)
    actor = SampleActor(plans=[plan], **ACTOR)
    (unit,) = bulk_sample_job(plan, ManifestSnapshot()).units
    task = {"job": 0, "unit": unit.name, "num_rows": SAMPLES, "parameters": unit.parameters}
    model, how = load_model(f"{root}/{name}"), family(name).Sample()

    def ours() -> None:
        storage.remove(f"{root}/out")
        actor.do(task)

    def bare() -> None:
        for first in range(0, SAMPLES, MICRO):
            rng = rng_for(0, "sample", range(first, first + MICRO))
            model.sample(rng.index_B % 10, rng, how)

    return _paired(f"sample job/{name}: PNG, sidecar, tar, index, receipt", SAMPLES, ours, bare)


def _score(root: str, name: str) -> dict:
    config = ScoreConfig(micro_batch=MICRO, rows_per_task=SCORES, calibration=None)
    job = ScoreJob(name, f"{root}/{name}", f"{root}/data", f"{root}/out", {})
    plan = plan_score(job, config, seed=0)
    actor = ScoreActor(plans=[plan], **ACTOR)
    dataset = DatasetManifest.model_validate_json(Path(f"{root}/data/dataset.json").read_text())
    (part,) = shard_slices(f"{root}/data", dataset, config, 0)
    task = {"job": 0, "unit": part.name, "num_rows": SCORES, "parameters": as_json(part)}
    model, how = load_model(f"{root}/{name}"), family(name).Score()
    reader = RowReader(SPEC, [part.shard])
    batches = [reader.read(np.arange(i, i + MICRO)) for i in range(0, SCORES, MICRO)]

    def ours() -> None:
        storage.remove(f"{root}/out")
        actor.do(task)

    def bare() -> None:
        for batch in batches:
            model.log_prob(batch, rng_for(0, "score", batch.index_B), how)

    return _paired(f"score job/{name}: read, decode, table, receipt", SCORES, ours, bare)


def bench() -> list[dict]:
    """The cheapest model of the kind, so that the job's own cost shows most: a VAE."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        _publish_inputs(root, "vae")
        return [_sample(root, "vae"), _score(root, "vae")]


if __name__ == "__main__":
    import json

    print(json.dumps(bench(), indent=2))
