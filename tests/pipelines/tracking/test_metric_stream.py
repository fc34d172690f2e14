"""From the metric log to MLflow: drivers and trainings are killed and resume, and each point arrives once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.session import ClusterConfig
from genmod.config import as_json
from genmod.training.job import TrainJob
from genmod.training.metric_log import MetricPoint, MetricWriter
from pipelines.jobs.training import MetricReporter, TrainOptions
from pipelines.tracking.tracker import Tracker, TrackingConfig
from tests.processes import TIMEOUT_S
from tests.soak.ranks import TRAIN, make_dataset, make_job

DRIVER = """
import json, sys, threading
from cluster.session import ClusterConfig
from genmod.training.job import TrainJob
from pipelines.jobs.training import MetricReporter, TrainOptions
from pipelines.tracking.tracker import Tracker, TrackingConfig
root, jobs = sys.argv[1], [TrainJob.model_validate(job) for job in json.loads(sys.argv[2])]
tracker = Tracker(TrackingConfig(), root)
runs = {job.name: tracker.run("train", job.name, job.name, {}, {}) for job in jobs}
with MetricReporter(jobs, TrainOptions(ClusterConfig(), root, metrics=runs)):
    threading.Event().wait(3600)
"""
"""Follows trainings that other processes run, until it is killed."""


def point(nimg: int) -> MetricPoint:
    metrics = {"train/all/loss": 1 / nimg} | ({"val/all/loss": 2 / nimg} if nimg % 96 == 0 else {})
    return MetricPoint(nimg, metrics, {"images_per_s": 5.0})


@pytest.fixture
def jobs(tmp_path) -> list[TrainJob]:
    data = make_dataset(str(tmp_path / "data"))
    train = TRAIN.model_copy(update={"nimg": 480})
    return [
        make_job(str(tmp_path / "data"), data, tmp_path / name, train).model_copy(
            update={"name": name}
        )
        for name in ("one", "two")
    ]


def history(root: Path, name: str, key: str) -> list[int]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("genmod")
    if experiment is None:
        return []
    runs = client.search_runs([experiment.experiment_id], f"tags.`genmod.name` = '{name}'")
    assert len(runs) <= 1
    return [m.step for run in runs for m in client.get_metric_history(run.info.run_id, key)]


def wait_for(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.2)


class Recorder:
    """A progress and a metric sink that keep what they receive."""

    def __init__(self) -> None:
        self.updates: list[tuple[str, int, int, str, str]] = []
        self.values: dict[int, dict[str, float]] = {}

    def update(
        self, task: str, done: int, total: int, unit: str, note: str = "", **_: object
    ) -> None:
        self.updates.append((task, done, total, unit, note))

    def log_metrics(self, values, nimg: int) -> None:
        assert nimg not in self.values
        self.values[nimg] = dict(values)


def test_models_are_followed_one_after_the_other(jobs):
    recorders = {job.name: Recorder() for job in jobs}
    progress = Recorder()
    options = TrainOptions(ClusterConfig(), "", progress, recorders)
    with MetricReporter(jobs, options):
        for job in jobs:
            with MetricWriter(job.root, 0) as log:
                for nimg in range(48, 481, 48):
                    log.append(point(nimg))
    for recorder in recorders.values():
        assert list(recorder.values) == list(range(48, 481, 48))
        assert recorder.values[96] == {
            "train/all/loss": 1 / 96,
            "val/all/loss": 2 / 96,
            "speed/images_per_s": 5.0,
        }
    last = {task: (done, total, unit, note) for task, done, total, unit, note in progress.updates}
    assert last == dict.fromkeys(
        ("train one", "train two"), (480, 480, "images", f"all loss {1 / 480:.4g}")
    )


def test_an_error_of_a_receiver_is_raised_when_training_has_ended(jobs):
    class Broken(Recorder):
        def log_metrics(self, values, nimg):
            raise RuntimeError("broken")

    options = TrainOptions(ClusterConfig(), "", metrics={"one": Broken()})
    with (
        pytest.raises(RuntimeError, match="broken"),
        MetricReporter(jobs[:1], options),
        MetricWriter(jobs[0].root, 0) as log,
    ):
        log.append(point(48))


@pytest.mark.slow
def test_mlflow_has_each_point_once_after_kills_of_the_driver_and_the_training(jobs, tmp_path):
    one, two = jobs
    arguments = [str(tmp_path), json.dumps([as_json(job) for job in jobs])]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", DRIVER, *arguments])

    def kill(driver: subprocess.Popen[bytes]) -> None:
        driver.kill()
        driver.wait()

    driver = start()
    try:
        training = MetricWriter(one.root, 0)
        for nimg in range(48, 337, 48):
            training.append(point(nimg))
        training.flush()
        wait_for(lambda: 336 in history(tmp_path, "one", "train/all/loss"))
    finally:
        kill(driver)
    training.append(point(384))
    training.flush()  # and then it is killed too: its newest checkpoint is at 240 images
    driver = start()
    try:
        wait_for(lambda: 384 in history(tmp_path, "one", "train/all/loss"))
        with MetricWriter(one.root, 240) as training:
            for nimg in range(288, 481, 48):
                training.append(point(nimg))
        with MetricWriter(two.root, 0) as training:
            for nimg in range(48, 481, 48):
                training.append(point(nimg))
        wait_for(lambda: 480 in history(tmp_path, "two", "val/all/loss"))
    finally:
        kill(driver)
    # The next command meets finished models and closes their runs.
    for job in jobs:
        tracker = Tracker(TrackingConfig(), str(tmp_path))
        run = tracker.run("train", job.name, job.name, {}, {})
        run.catch_up(480, lambda after: [(n, point(n).metrics) for n in range(48, 481, 48)])
        run.finish()
        assert tracker.close(TIMEOUT_S)
        for key, step in (("train/all/loss", 48), ("speed/images_per_s", 48), ("val/all/loss", 96)):
            assert history(tmp_path, job.name, key) == list(range(step, 481, step)), (job.name, key)
