"""Expected times of ``--dry-run`` against real runs: training, sampling and scoring of each family.

A real run is the whole job of one worker in this process: data read from shards, results written and
published. ``ours`` is the expected time, ``peer`` the real one, both without the start of processes. Seconds
are the smaller of wall and CPU time, so that other load does not count.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from cluster.session import ClusterConfig
from genmod.config import as_json, parse
from genmod.costs.measured import Clock
from genmod.data.format.shards import Row, write_shard
from genmod.generation.config import SampleConfig
from genmod.generation.request import resolve_request
from genmod.interface.model import DataStats, GenerativeModel
from genmod.interface.registry import ModelConfig, family
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import DatasetManifest, ImageSpec, dataset_metadata, publish
from genmod.rng import rng_for
from genmod.scoring.config import ScoreConfig
from genmod.scoring.work_units import shard_slices
from genmod.training.job import TrainJob, run_job
from genmod.training.plan import TrainConfig
from genmod.world import SingleProcess
from pipelines.commands import expected_times
from pipelines.commands.expected_times import Cores, sampling_time, scoring_time, training_time
from pipelines.jobs.sample_plan import SampleJob, plan_sample
from pipelines.jobs.sampling import SampleActor, bulk_sample_job
from pipelines.jobs.score_plan import ScoreJob, plan_score
from pipelines.jobs.scoring import ScoreActor
from pipelines.recipe.recipe import load_recipe

SPEC = ImageSpec(channels=1, height=28, width=28, classes=10)
TRAIN_ROWS, VAL_ROWS = 2_000, 200
STEPS, SAMPLES, SCORES = 150, 400, 200
BUDGET_S = expected_times.BUDGET_S
QUICK = {"TRAIN_ROWS": 300, "STEPS": 4, "SAMPLES": 50, "SCORES": 20, "BUDGET_S": 0.05}

_ACTOR: dict[str, Any] = {"device": "cpu", "threads": 1, "deadline_s": 3600.0}


@dataclass(frozen=True)
class Subject:
    """A model and what the recipe says of it."""

    name: str
    family: str
    net: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    sample: dict[str, Any] = field(default_factory=dict)
    score: dict[str, Any] = field(default_factory=dict)

    def config(self) -> ModelConfig:
        stats = DataStats(mean=(0.0,), std=(0.5,))
        return ModelConfig(family=self.family, net=self.net, spec=SPEC, stats=stats)


def subjects() -> Iterator[Subject]:
    """The models of the quickstart, a VAE of plain layers, and a flow."""
    recipe = load_recipe("quickstart")
    for name in recipe.model:
        entry = recipe.entry(name)
        score = entry.score or {
            "sigma": 0.5,
            "ais": {"temperatures": 40, "pilot_temperatures": 10, "chains": 2},
            "simulated_rows": 0,
            "max_rows": 20,
        }
        train = {"batch": 64} | entry.train
        yield Subject(name, entry.family, entry.net, train, entry.sample, score)
    plain = {"latents": 32, "hidden": [512, 512]}
    yield Subject("vae of plain layers", "vae", plain, {"batch": 256}, score={"k": 64})
    yield Subject("flow", "flow", {}, {"batch": 64})


def write_dataset(root: str) -> DatasetManifest:
    """Shards of random images in which most pixels are 0, as in pictures of digits."""
    shards, metadata = [], {}
    for split, count in (("train", TRAIN_ROWS), ("val", VAL_ROWS)):
        rng = rng_for(0, f"bench/{split}", range(count))
        pixels = rng.integers(256, 28, 28, 1) * (rng.fold("ink").integers(5, 28, 28, 1) == 0)
        images = pixels.to(torch.uint8).numpy()
        rows = [Row(f"{split}{i}", i, images[i], label=i % 10) for i in range(count)]
        shard, stats = write_shard(root, f"{split}-000000", split, SPEC, rows)
        shards.append(shard)
        metadata[split] = stats
    manifest = DatasetManifest(
        fingerprint="bench", spec=SPEC, shards=tuple(shards), metadata=dataset_metadata(metadata)
    )
    return publish(root, manifest)


def _seconds(call: Callable[[], object]) -> float:
    clock = Clock()
    call()
    return clock.lap()


def compare(subject: Subject, root: str, dataset: DatasetManifest) -> Iterator[dict]:
    """Expected and real seconds of the three stages."""
    cores = Cores.of(ClusterConfig(address="local"))
    model_root = f"{root}/models/{subject.name}"
    train = parse(TrainConfig, subject.train | {"workers": 1}, "train")
    train = train.model_copy(update={"nimg": STEPS * train.batch})
    job = TrainJob(
        name=subject.name, root=model_root, data_root=f"{root}/data", data_digest=dataset.digest,
        model=subject.config(), train=train, sample=subject.sample, seed=0,
    )  # fmt: skip
    model: GenerativeModel = subject.config().build(0)
    expected = training_time(model, train, cores).total_s
    yield _row(subject, "train", expected, _seconds(lambda: run_job(job, SingleProcess())))

    config = SampleConfig(count=SAMPLES, shard_rows=SAMPLES, micro_batch=50)
    sampling = SampleJob(subject.name, model_root, f"{root}/samples/{subject.name}", subject.sample)
    plan = plan_sample(sampling, config, seed=0)
    sampler = SampleActor(plans=[plan], **_ACTOR)
    options = parse(family(subject.family).Sample, subject.sample, "sample")
    expected = sampling_time(model, options, resolve_request(config, SPEC), config, cores).total_s
    (unit,) = bulk_sample_job(plan, ManifestSnapshot()).units
    real = _seconds(lambda: sampler.write_unit(plan, unit.name, unit.parameters))
    yield _row(subject, "sample", expected, real)

    score_options = parse(family(subject.family).Score, subject.score, "score")
    rows = min(SCORES, score_options.max_rows or SCORES)
    scores = ScoreConfig(micro_batch=50, max_rows=rows, rows_per_task=SCORES, calibration=None)
    scoring = ScoreJob(
        subject.name, model_root, f"{root}/data", f"{root}/scores/{subject.name}", subject.score
    )
    score_plan = plan_score(scoring, scores, seed=0)
    (part,) = shard_slices(scoring.data_root, dataset, score_plan.config, 0)
    scorer = ScoreActor(plans=[score_plan], **_ACTOR)
    expected = scoring_time(model, score_options, rows, scores, cores).total_s
    real = _seconds(lambda: scorer.write_unit(score_plan, part.name, as_json(part)))
    yield _row(subject, "score", expected, real)


def _row(subject: Subject, stage: str, expected_s: float, real_s: float) -> dict:
    return {
        "name": f"{stage}/{subject.name}",
        "unit": "s expected",
        "ours": expected_s,
        "peer": real_s,
        "peer_name": "s real",
        "ratio": expected_s / real_s,
    }


def bench() -> list[dict]:
    """All subjects."""
    torch.set_num_threads(1)
    expected_times.BUDGET_S = BUDGET_S
    with tempfile.TemporaryDirectory() as root:
        dataset = write_dataset(f"{root}/data")
        return [row for subject in subjects() for row in compare(subject, root, dataset)]


if __name__ == "__main__":
    import json

    print(json.dumps(bench(), indent=2))
