"""The train stage on a real local Ray: crashes do not change the weights, and errors are reported at once.

Each launch of the workers takes about fifteen seconds, so there are few launches.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from cluster.session import ClusterConfig
from genmod import storage
from genmod.config import as_json
from genmod.errors import ConfigError, TrainingDiverged
from genmod.interface.model import DataStats
from genmod.interface.model_store import load_model
from genmod.interface.registry import ModelConfig, families, family
from genmod.manifest import DatasetManifest, ImageSpec, Manifest, require
from genmod.training.job import TrainJob, plan_job, run_job
from genmod.training.metric_log import read_metrics
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.training.publish import publish_model
from genmod.training.state import TrainState
from genmod.world import SingleProcess
from pipelines.jobs import training
from pipelines.recipe.context import Context, model_config
from pipelines.recipe.recipe import Recipe
from pipelines.stages import distill
from pipelines.stages import train as train_stage
from tests.builders import write_noise
from tests.processes import TIMEOUT_S

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPEC = ImageSpec(channels=1, height=8, width=8, classes=3)
LATER = 2_800
"""Images after which a run is disturbed: it has checkpoints, and most of it is still to come."""
TRAIN = TrainConfig(
    nimg=12_000,
    batch=16,
    workers=2,
    log_every_nimg=400,
    validate_every_nimg=4_000,
    validation_rows=30,
    grid_every_nimg=6_000,
    grid_images=6,
    checkpoint_every_nimg=1_000,
    optim=OptimConfig(lr=1e-3, warmup_nimg=500),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> tuple[str, DatasetManifest]:
    root = str(tmp_path_factory.mktemp("data"))
    return root, write_noise(root, SPEC, {"train": 100, "val": 30})


def job(dataset, root: Path, name: str, config: TrainConfig = TRAIN, at: int = -1) -> TrainJob:
    data_root, data = dataset
    kind = families()[at]
    model = ModelConfig(
        family=kind,
        net=as_json(family(kind).Config.tiny()),
        spec=SPEC,
        stats=DataStats.model_validate(data.metadata["stats"]),
    )
    planned = TrainJob(
        name=name,
        root=str(root / "models" / name),
        data_root=data_root,
        data_digest=data.digest,
        model=model,
        train=config,
        seed=7,
    )
    return plan_job(planned, data)


def options(root: Path, **more) -> training.TrainOptions:
    return training.TrainOptions(ClusterConfig(), str(root / ".scratch"), **more)


def shas(manifest: Manifest) -> dict[str, str]:
    return {entry.path: entry.sha256 for entry in manifest.files}


def newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)


def wait_for(condition, what: str, deadline_s: float = TIMEOUT_S):
    end_s = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end_s, f"{what} did not come"
        time.sleep(0.02)
    return found


@pytest.fixture
def starts(monkeypatch, tmp_path):
    """A folder where each worker that starts leaves a file named by its rank and process."""
    folder, real = tmp_path / "starts", training.run_worker
    folder.mkdir()

    def noted(world, values):
        (folder / f"{world.rank}-{os.getpid()}").touch()
        real(world, values)

    monkeypatch.setattr(training, "run_worker", noted)
    return folder


def tuning_recipe(root: Path) -> Recipe:
    tuned = {"family": "diffusion", "distills": "base",
             "net": {"objective": "consistency", "halve_nimg": 100},
             "sample": {"solver": "consistency", "steps": 2}}  # fmt: skip
    net = as_json(family("diffusion").Config.tiny())
    return Recipe.model_validate(
        {
            "root": str(root),
            "data": {"source": "builtin:digits"},
            "model": {"base": {"family": "diffusion", "net": net}, "two-steps": tuned},
            "train": as_json(TRAIN.model_copy(update={"nimg": 320})),
            "tracking": {"enabled": False},
        }
    )


def tuning_job(dataset, root: Path) -> TrainJob:
    """The distill stage's own job, of a model that is published without training."""
    shutil.copytree(dataset[0], root / "data")
    recipe = tuning_recipe(root)
    config = model_config(recipe, "base", dataset[1])
    state = TrainState(0, config.build(1), config.build(2), ())
    where = recipe.at("models", "base")
    publish_model(where, config, state, fingerprint="base", parents={}, metadata={})
    return train_stage.job_of(Context(recipe, ("two-steps",)), "two-steps", dataset[1])


class Recorder:
    """Keeps the progress and the metrics of trainings."""

    def __init__(self) -> None:
        self.updates: list[tuple[str, int, int]] = []
        self.values: dict[str, dict[int, dict[str, float]]] = {}

    def update(
        self, task: str, done: int, total: int, unit: str, note: str = "", **_: object
    ) -> None:
        self.updates.append((task, done, total))

    def sink(self, name: str):
        received = self.values.setdefault(name, {})

        class Sink:
            def log_metrics(self, values, nimg: int) -> None:
                assert nimg not in received
                received[nimg] = dict(values)

        return Sink()


@pytest.fixture(scope="module")
def undisturbed(ray_session, dataset, tmp_path_factory) -> tuple[list[Manifest], Recorder, Path]:
    root, recorder = tmp_path_factory.mktemp("undisturbed"), Recorder()
    jobs = [job(dataset, root, "one"), job(dataset, root, "two", at=0), tuning_job(dataset, root)]

    metrics = {job.name: recorder.sink(job.name) for job in jobs}
    manifests = training.train_models(jobs, options(root, progress=recorder, metrics=metrics))
    return manifests, recorder, root


def test_models_are_trained_in_one_launch_and_report_progress(undisturbed, dataset):
    manifests, recorder, root = undisturbed
    for name, manifest in zip(("one", "two"), manifests[:2], strict=True):
        assert list(recorder.values[name]) == list(range(400, 12_001, 400))
        for values in recorder.values[name].values():
            assert all(value == value for value in values.values())
        steps = [(done, total) for task, done, total in recorder.updates if task == f"train {name}"]
        assert steps == sorted(steps)
        assert steps[-1] == (12_000, 12_000)
        assert load_model(str(root / "models" / name)).spec == SPEC
        assert manifest.metadata["nimg"] == 12_000
        assert len([path for path in shas(manifest) if path.startswith("grids/")]) == 2
        assert not (root / "models" / name / "checkpoints").exists()
    jobs = [job(dataset, root, "one"), job(dataset, root, "two", at=0)]

    def never():
        raise AssertionError("there is no work to connect for")

    again = training.train_models(jobs, options(root, connect=never))
    assert [m.digest for m in again] == [m.digest for m in manifests[:2]]
    other = job(dataset, root, "one", TRAIN.model_copy(update={"nimg": 500}))
    with pytest.raises(ConfigError, match="made from other inputs"):
        training.train_models([other], options(root))


def test_killed_worker_leaves_no_trace(undisturbed, dataset, tmp_path, starts):
    mine = job(dataset, tmp_path, "one")

    def kill_rank_1():
        wait_for(lambda: [p.nimg for p in read_metrics(mine.root) if p.nimg >= LATER], "progress")
        os.kill(int(newest(starts, "1-*").name.split("-")[1]), signal.SIGKILL)

    killer = threading.Thread(target=kill_rank_1)
    killer.start()
    (made,) = training.train_models([mine], options(tmp_path))
    killer.join()
    assert len(list(starts.iterdir())) == 4, "the group was started twice"
    assert shas(made) == shas(undisturbed[0][0])
    assert made.digest == undisturbed[0][0].digest


def test_workers_that_hang_are_named_and_leave_no_trace(
    undisturbed, dataset, tmp_path, monkeypatch, caplog, starts
):
    """Rank 1 is stopped like a frozen machine; in the next launch rank 0 waits for data for ever.

    Ray itself notices a stopped process too, but not within 10 s.
    """
    flag, noted = tmp_path / "hang-once", training.run_worker
    flag.touch()

    def hanging(world, values):
        from genmod.training import job as jobs

        real = jobs.open_stream

        def stream(job, data, world, start_nimg):
            batches = real(job, data, world, start_nimg)

            class Stuck:
                def __next__(self):
                    if world.rank == 0 and start_nimg > 0 and flag.exists():
                        flag.unlink()
                        time.sleep(10_000)
                    return next(batches)

                def close(self):
                    batches.close()

            return Stuck()

        jobs.open_stream = stream
        noted(world, values)

    monkeypatch.setattr(training, "run_worker", hanging)
    mine = job(
        dataset, tmp_path, "one", TRAIN.model_copy(update={"hang_timeout_s": 10, "max_failures": 9})
    )
    stopped = []

    def stop_rank_1():
        wait_for(lambda: [p.nimg for p in read_metrics(mine.root) if p.nimg >= LATER], "progress")
        stopped.append(int(newest(starts, "1-*").name.split("-")[1]))
        os.kill(stopped[0], signal.SIGSTOP)

    stopper = threading.Thread(target=stop_rank_1)
    stopper.start()
    (made,) = training.train_models([mine], options(tmp_path))
    stopper.join()
    assert shas(made) == shas(undisturbed[0][0])
    assert made.digest == undisturbed[0][0].digest
    assert not flag.exists()
    assert f"rank 1 (process {stopped[0]} on node" in caplog.text
    assert "rank 0 (process" in caplog.text
    assert "made no progress for 10 s, last at data" in caplog.text
    stacks = {path.name: path.read_text() for path in Path(mine.root, "stacks").iterdir()}
    assert "in train" in stacks[f"rank-1-{stopped[0]}.txt"]
    assert [text for name, text in stacks.items() if "rank-0" in name and "in __next__" in text]


DRIVER = """
import json, sys
from cluster.environment import set_environment
set_environment()
from cluster.session import ClusterConfig, connect
from genmod.training.job import TrainJob
from pipelines.jobs.training import TrainOptions, train_models
job, address, scratch = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
config = ClusterConfig(address=address)
train_models([TrainJob.model_validate(job)], TrainOptions(config, scratch, connect=lambda: connect(config)))
"""


def test_killed_driver_leaves_no_trace(undisturbed, dataset, tmp_path, starts):
    import ray

    mine = job(dataset, tmp_path, "one")
    address = ray.get_runtime_context().gcs_address
    arguments = [json.dumps(as_json(mine)), address, str(tmp_path / ".scratch")]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *arguments])
    try:
        wait_for(lambda: [p.nimg for p in read_metrics(mine.root) if p.nimg >= LATER], "progress")
    finally:
        driver.kill()
        driver.wait()
    (made,) = training.train_models([mine], options(tmp_path))
    assert len(list(starts.iterdir())) == 2
    assert shas(made) == shas(undisturbed[0][0])
    assert made.digest == undisturbed[0][0].digest


def test_divergence_is_told_as_it_is_and_not_retried(ray_session, dataset, tmp_path, starts):
    wild = TRAIN.model_copy(
        update={"optim": OptimConfig(lr=1000, warmup_nimg=0, clip_norm=None), "max_failures": 3}
    )
    with pytest.raises(TrainingDiverged, match="not finite in the step that ended at"):
        training.train_models([job(dataset, tmp_path, "wild", wild)], options(tmp_path))
    assert len(list(starts.iterdir())) == 2, "the group was started once"
    assert not storage.exists(str(tmp_path / "models" / "wild" / "model.json"))


def test_more_workers_than_the_cluster_has_resources_for_are_refused(
    ray_session, dataset, tmp_path
):
    many = TRAIN.model_copy(update={"workers": 16})
    with pytest.raises(ConfigError, match="resources for 2"):
        training.train_models([job(dataset, tmp_path, "many", many)], options(tmp_path))


def test_distill_tunes_what_is_published_on_two_workers_as_in_one_process(
    undisturbed, dataset, tmp_path
):
    manifests, _, root = undisturbed
    recipe, made = tuning_recipe(root), manifests[2]
    with pytest.raises(ConfigError, match="run genmod distill"):
        train_stage.stage(Context(recipe, ("two-steps",)))
    result = distill.stage(Context(recipe, ("base", "two-steps")))
    assert (result["stage"], result["status"]) == ("distill", "already done")
    assert result["fingerprint"] == made.fingerprint
    base = require(Manifest, recipe.at("models", "base"), "model", "train")
    assert made.parents == {"data": dataset[1].digest, "start": base.digest}
    mine = train_stage.job_of(Context(recipe, ("two-steps",)), "two-steps", dataset[1])
    run_job(mine.model_copy(update={"root": str(tmp_path)}), SingleProcess())
    tuned, alone, before = (
        load_model(where, "ema").state_dict()
        for where in (recipe.at("models", "two-steps"), str(tmp_path), recipe.at("models", "base"))
    )
    for name, value in tuned.items():
        torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-5, msg=name)
    assert any(not torch.equal(value, before[name]) for name, value in tuned.items())
