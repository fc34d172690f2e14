"""Real documents to mutate: a small run of every stage, without Ray, below one folder."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from genmod import storage
from genmod.config import as_json, canonical_json
from genmod.data.format.shards import ShardReceipt, quarantine_file
from genmod.data.order.training_order import MixturePart
from genmod.data.reading.reader import open_dataset
from genmod.data.sharding.finish import make_manifest
from genmod.data.sharding.ingest import make_shard
from genmod.data.sharding.plan import make_plan
from genmod.data.sharding.previous_version import load_previous_version
from genmod.data.sources.config import DataConfig, Splits
from genmod.evaluation.features_job import FeaturesJob
from genmod.evaluation.jobs import EvaluationJob
from genmod.generation.config import SampleConfig
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, family
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import DatasetManifest, Manifest, claim, publish
from genmod.metrics.features import FeaturesConfig
from genmod.metrics.protocol import EvaluateConfig
from genmod.promotion import Author, Evidence, Ledger, LedgerChange, LedgerModel
from genmod.receipts import commit
from genmod.scoring.config import ScoreConfig
from genmod.scoring.ood_scores import CalibrationConfig
from genmod.training.checkpoint import Checkpoints
from genmod.training.job import TrainJob, open_stream, plan_job, run_job
from genmod.training.loop import train
from genmod.training.plan import TrainConfig
from genmod.training.setup import Plan
from genmod.world import SingleProcess
from pipelines.jobs.sample_plan import SampleJob, plan_sample
from pipelines.jobs.sampling import SampleActor, bulk_sample_job
from pipelines.jobs.scoring import ScoreActor, ScoreJob, bulk_score_job, plan_score
from pipelines.recipe.tree import RECIPES
from tests.fuzz.formats import write_formats
from tests.fuzz.gates import write_net, write_spool, write_version
from tests.fuzz.heartbeats import write_heartbeats
from tests.fuzz.leases import write_lease, write_ticks

FAMILY = "vae"
"""The family of the corpus's model; any family with a density would do."""

SIDE = 8
TRAIN = TrainConfig(
    nimg=32, batch=8, log_every_nimg=8, validate_every_nimg=16, grid_every_nimg=32, grid_images=3
)
CHECKPOINTS = TRAIN.model_copy(
    update={"checkpoint_every_nimg": 8, "validate_every_nimg": None, "grid_every_nimg": None}
)
EVALUATE = EvaluateConfig(
    reference="val",
    images=10,
    memorisation_calibration=10,
    neighbours=2,
    features=FeaturesConfig(rows=16, train_images=64, batch_images=16),
)


@dataclass(frozen=True)
class Corpus:
    """The documents of one small run."""

    folder: Path
    """Every file of the run is below it."""
    files: dict[str, bytes]
    """Path relative to the folder -> content."""
    plans: dict[str, object]
    """What the readers need besides the files."""


def build(folder: Path) -> Corpus:
    """Run every stage in this process. The same documents each time, apart from the folder's name."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    _sources(folder / "sources")
    data = _shard(folder, "data", f"folder:{folder}/sources/images")
    _more_images(folder / "sources")
    old = load_previous_version(str(folder / "data"), data)
    _shard(folder, "data-v2", f"folder:{folder}/sources/images", old)
    job = _train(folder, data)
    state = _checkpoints(folder, job)
    plans: dict[str, object] = {"train": job, "state": state}
    plans["sample"] = _sample(folder)
    plans["score"] = _score(folder)
    features = FeaturesJob(
        data_root=str(folder / "data"), out_root=str(folder / "features"), config=EVALUATE
    )
    features.do()
    plans["features"], plans["evaluation"] = features, _evaluation(folder)
    plans["evaluation"].do()
    _small_files(folder)
    _ledger(folder)
    write_version(folder)
    write_net(folder)
    write_spool(folder)
    write_formats(folder / "formats")
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return Corpus(folder, files, plans)


def _image(seed: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE), np.uint8)
    Image.fromarray(pixels).save(folder / f"{seed:03d}.png")


def _sources(folder: Path) -> None:
    """Two classes of images, and an image that is rejected; an npz, an idx, a Parquet file and a tar."""
    from tests.fuzz.sources import write_sources

    for number in range(40):
        _image(number, folder / "images" / "ab"[number % 2])
    (folder / "images" / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    write_sources(folder)


def _more_images(folder: Path) -> None:
    for number in range(40, 52):
        _image(number, folder / "images" / "ab"[number % 2])


def _shard(folder: Path, name: str, source: str, previous=None) -> DatasetManifest:
    root = str(folder / name)
    splits = Splits(val=0.3, test=0.2)
    config = DataConfig(source=source, shard_rows=12, splits=splits, max_quarantined=0.5)
    plan = make_plan(config, 0, previous)
    claim(root, plan.fingerprint)
    receipts = [make_shard(plan.job(shard, root)) for shard in plan.shards]
    rejected = [*plan.rejected, *(row for receipt in receipts for row in receipt.rejected)]
    return publish(root, make_manifest(plan, root, receipts, quarantine_file(root, rejected)))


def _train(folder: Path, data: DatasetManifest) -> TrainJob:
    job = TrainJob(
        name="m",
        root=str(folder / "models" / "m"),
        data_root=str(folder / "data"),
        data_digest=data.digest,
        model=ModelConfig(
            family=FAMILY,
            net=as_json(family(FAMILY).Config.tiny()),
            spec=data.spec,
            stats=DataStats.model_validate(data.metadata["stats"]),
        ),
        train=TRAIN,
        seed=0,
    )
    planned = plan_job(job, data)
    run_job(planned, SingleProcess())
    return planned


def _checkpoints(folder: Path, job: TrainJob):
    """Checkpoints and a metric log of a training that is not finished, and its state."""
    model = job.model.build(0)
    root = str(folder / "models" / "half")
    checkpoints = Checkpoints(root, job.fingerprint, job.model, keep=3)
    parts = [MixturePart(job.data_root, open_dataset(job.data_root))]
    world = SingleProcess()

    def batches(start: int):
        return open_stream(job, parts, world, start)

    return train(copy.deepcopy(model), batches, world, Plan(CHECKPOINTS, 0, root, checkpoints))


def _sample(folder: Path):
    config = SampleConfig(count=16, shard_rows=8, micro_batch=8)
    job = SampleJob(
        name="m",
        model_root=str(folder / "models" / "m"),
        out_root=str(folder / "samples" / "m"),
        options={},
    )
    plan = plan_sample(job, config, seed=0)
    _run_units(SampleActor, bulk_sample_job(plan, ManifestSnapshot()))
    return plan


def _score(folder: Path):
    config = ScoreConfig(
        split="val", rows_per_task=6, calibration=CalibrationConfig(split="val", rows=20)
    )
    job = ScoreJob(
        name="m",
        model_root=str(folder / "models" / "m"),
        data_root=str(folder / "data"),
        out_root=str(folder / "scores" / "m"),
        options={"k": 2},
    )
    plan = plan_score(job, config, seed=0)
    _run_units(ScoreActor, bulk_score_job(plan, ManifestSnapshot()))
    return plan


def _run_units(actor_class, job, number: int = 0):
    """Write every unit of a job in this process, and publish its manifest."""
    first = None if job.first is None else _run_units(actor_class, job.first)
    claim(job.out_root, job.work_fingerprint)
    actor = actor_class(plans=[job.plan], device="cpu", threads=1, deadline_s=60.0)
    receipts = {}
    for unit in job.units:
        task = {
            "name": unit.name,
            "job": number,
            "unit": unit.name,
            "num_rows": unit.num_rows,
            "parameters": unit.parameters,
        }
        receipts[unit.name] = job.receipt.model_validate(actor.do(task)["receipt"])
    return publish(job.out_root, job.finish(receipts, first))


def _evaluation(folder: Path) -> EvaluationJob:
    return EvaluationJob(
        name="m",
        data_root=str(folder / "data"),
        samples_root=str(folder / "samples" / "m"),
        features_root=str(folder / "features"),
        scores_root=str(folder / "scores" / "m"),
        out_root=str(folder / "evaluation" / "m"),
        model_root=str(folder / "models" / "m"),
        config=EVALUATE,
    )


def _ledger(folder: Path) -> None:
    """A chain of champions, and the recipe whose ledger it is."""
    digest = json.loads((folder / "models" / "m" / "model.json").read_text())["digest"]
    model = LedgerModel(digest=digest, root=str(folder / "models" / "m"), version=1)
    other = model.model_copy(update={"digest": "0" * 64, "version": 2})
    ledger = Ledger(str(folder / "promotions"), "m")
    history = ledger.read()
    decision = Evidence(root=str(folder / "decision" / "m"), digest="1" * 64)
    for action, each, evidence in (
        ("adopt", model, None), ("promote", other, decision), ("rollback", model, None),
        ("pin", other, None), ("unpin", other, None),
    ):  # fmt: skip
        author = Author(user="kim@host", job="genmod-retrain-1a2b-2")
        continued = ledger.append(history, LedgerChange(action, each, "a reason", author, evidence))
        assert continued is not None
        history = continued
    (folder / "ledger.yaml").write_text(
        f"root: {folder}\ndata: {{source: 'builtin:digits'}}\nmodel: {{m: {{family: {FAMILY}}}}}\n"
        "tracking: {enabled: false}\n"
    )


def _small_files(folder: Path) -> None:
    """A worker's error, heartbeats, a receipt of a rejected shard, and recipes."""
    note = {"type": "DataError", "message": "a.tar: member b does not match its checksum"}
    for rank in range(2):
        storage.write_bytes(str(folder / "notes" / f"{rank:06d}.json"), canonical_json(note))
    write_heartbeats(folder / "heartbeats")
    write_lease(folder / "leased")
    write_ticks(folder / "scheduled")
    rejected = ShardReceipt(
        fingerprint="f", shard=None, metadata=None, rejected=(("k", "name", "reason"),)
    )
    commit(str(folder / "receipt"), "train-000000", rejected)
    for name in ("quickstart", "familiarity"):
        tree = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
        tree["root"] = str(folder / "root")
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))


__all__ = ["CHECKPOINTS", "EVALUATE", "Corpus", "Manifest", "build"]
