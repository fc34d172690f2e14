"""A real MLflow server that is killed, frozen, refuses, loses answers and comes back; then a replay."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from genmod import storage
from genmod.manifest import Manifest, load_manifest, publish
from pipelines.cli import main
from pipelines.tracking import registry
from pipelines.tracking.records import RunRecord
from pipelines.tracking.replay import Replay, ReplaySummary
from pipelines.tracking.spool import SPOOL_FOLDER, SpoolBusy, exclusive, stored_spools
from pipelines.tracking.tracker import Tracker, TrackingConfig, TrackingError
from tests.pipelines.tracking.real_server import real_server
from tests.processes import TIMEOUT_S
from tests.stores.proxy import Fault, proxied

POINTS = 40
INPUTS = {"data": ("memory://data", "ab" * 32)}

WRITER = """
import sys, threading
from tests.pipelines.tracking.test_replay import log_run, tracker_of
uri, root, fingerprint = sys.argv[1:]
log_run(tracker_of(uri, root), root, fingerprint)
print("logged", flush=True)
threading.Event().wait()
"""
"""Logs a run and never ends, so only a kill ends it."""

REPLAYER = """
import sys
from tests.pipelines.tracking.test_replay import replayed
replayed(*sys.argv[1:])
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with real_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def front(server):
    """A proxy in front of the server."""
    with proxied(SimpleNamespace(endpoint=server.endpoint)) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _one_attempt(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(int(TIMEOUT_S)))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "root")


def make_root(root):
    """A root with a published model and a file."""
    folder = root / "model"
    folder.mkdir(parents=True)
    for name in registry.REGISTERED_FILES[:2]:
        (folder / name).write_text(name)
    publish(str(folder), Manifest(kind="model", fingerprint="f" * 64, files=()))
    (folder / "grid.png").write_bytes(b"png")
    return str(root)


def tracker_of(uri, root):
    return Tracker(TrackingConfig(uri=uri), root)


def log_run(tracker, root, fingerprint, at_point=lambda nimg: None):
    """Log a run, with records of every kind, and the run that it is a part of.

    ``at_point`` is called after each point.
    """
    tracker.parent = parent = tracker.run("retrain", "all", f"{fingerprint}-parent", {}, {})
    run = tracker.run("train", "vae", fingerprint, {"lr": 0.1, "b": [1]}, INPUTS)
    for nimg in range(1, POINTS + 1):
        run.log_metrics({"loss": 1 / nimg, "fd[cls]": float("nan")}, nimg)
        at_point(nimg)
    run.catch_up(POINTS + 2, lambda after: [(n, {"loss": 0.0}) for n in (after + 1, after + 2)])
    run.log_artifact(f"{root}/model/grid.png", "grids")
    digest = load_manifest(Manifest, f"{root}/model", "model").digest
    entry = registry.ModelEntry(f"m-{fingerprint}", digest, f"{root}/model", "root: r\n")
    registry.register_in_background(tracker, run, entry)
    run.finish("FINISHED", {"digest": "d" * 64})
    parent.finish()


def replayed(uri, root):
    """Send all spools below a root."""
    summary = ReplaySummary()
    tracker = tracker_of(uri, root)
    with exclusive(root):
        for spool in stored_spools(root):
            Replay(tracker, summary).send(spool)
    tracker.close(TIMEOUT_S)
    return summary


def content(server, fingerprint):
    """All that MLflow has of a run, in a form that two runs can be compared in; and of its parent."""
    from mlflow import MlflowClient

    client = MlflowClient(server.endpoint, registry_uri=server.endpoint)
    experiment = client.get_experiment_by_name("genmod").experiment_id
    found = {}
    for name in (fingerprint, f"{fingerprint}-parent"):
        (run,) = client.search_runs([experiment], f"tags.`genmod.fingerprint` = '{name}'")
        found[name] = run
    run, parent = found.values()
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    own = {"genmod.fingerprint", "mlflow.parentRunId"}
    versions = client.search_model_versions(f"name = 'genmod-m-{fingerprint}'")
    return {
        "params": run.data.params,
        "tags": {key: value for key, value in run.data.tags.items() if key not in own},
        "status": (run.info.status, parent.info.status),
        "inputs": [d.dataset.digest for d in run.inputs.dataset_inputs],
        "artifacts": [
            (f.path, f.file_size)
            for folder in ("grids", "model")
            for f in client.list_artifacts(run.info.run_id, folder)
        ],
        "versions": [(v.version, v.run_id == run.info.run_id) for v in versions],
        "metrics": {
            key: [(m.step, repr(m.value)) for m in client.get_metric_history(run.info.run_id, key)]
            for key in ("loss", "fd_cls")
        },
    }


@pytest.fixture(scope="module")
def expected(server, tmp_path_factory):
    """The content of an undisturbed run."""
    root = make_root(tmp_path_factory.mktemp("undisturbed"))
    tracker = tracker_of(server.endpoint, root)
    log_run(tracker, root, "undisturbed")
    assert tracker.close(TIMEOUT_S)
    assert os.listdir(root) == ["model"]
    found = content(server, "undisturbed")
    steps = [*range(1, POINTS + 1), POINTS + 1, POINTS + 2]
    assert [step for step, _ in found["metrics"]["loss"]] == steps
    return found


def wait_for_fault(front):
    end_s = time.monotonic() + TIMEOUT_S
    while not front.injected:
        assert time.monotonic() < end_s
        time.sleep(0.01)


@contextmanager
def frozen(server):
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("refuse", ""),
        ("401", ""),
        ("lose", "runs/create"),
        ("silence", "runs/create"),
        ("500", "log-batch"),
        ("lose", "log-batch"),
        ("silence", "log-batch"),
    ],
)
def test_a_replay_equals_an_undisturbed_run(server, front, root, expected, kind, part):
    fingerprint = uuid.uuid4().hex
    front.faults.append(Fault(kind, part=part, times=10_000))
    tracker = tracker_of(front.endpoint, root)
    start_s = time.monotonic()
    log_run(tracker, root, fingerprint)
    assert time.monotonic() - start_s < 5
    wait_for_fault(front)
    assert not tracker.close(0.5)
    front.faults.clear()
    summary = replayed(front.endpoint, root)
    assert (summary.spools, summary.problems, summary.obsolete) == (1, [], [])
    assert content(server, fingerprint) == expected
    assert not os.path.exists(storage.join(root, SPOOL_FOLDER))
    assert replayed(front.endpoint, root) == ReplaySummary()


@pytest.mark.slow
def test_answers_that_are_half_a_minute_late(server, front, root, expected, monkeypatch):
    """They are carried out, so that a call that is made again must not count twice."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    fingerprint = uuid.uuid4().hex
    front.faults.append(Fault("late", part="log-batch", times=10_000))
    tracker = tracker_of(front.endpoint, root)
    start_s = time.monotonic()
    log_run(tracker, root, fingerprint)
    assert time.monotonic() - start_s < 5
    wait_for_fault(front)
    start_s = time.monotonic()
    assert not tracker.close(5)
    assert time.monotonic() - start_s < 5 + TIMEOUT_S / 4
    front.faults.clear()
    assert replayed(front.endpoint, root).problems == []
    assert content(server, fingerprint) == expected


@pytest.mark.slow
def test_a_server_whose_disk_is_full(server, root, expected):
    fingerprint = uuid.uuid4().hex
    with server.full_disk():
        tracker = tracker_of(server.endpoint, root)
        start_s = time.monotonic()
        log_run(tracker, root, fingerprint)
        assert time.monotonic() - start_s < 5
        assert not tracker.close(5)
    summary = replayed(server.endpoint, root)
    assert (summary.spools, summary.problems) == (1, [])
    assert content(server, fingerprint) == expected


@pytest.mark.slow
@pytest.mark.parametrize("is_back", [False, True])
def test_a_server_that_is_killed_while_a_command_logs_and_started_again(
    server, root, expected, is_back
):
    """``is_back``: it is started again before the command ends, else before the replay."""
    fingerprint = uuid.uuid4().hex
    tracker = tracker_of(server.endpoint, root)

    def kill(nimg):
        if nimg == POINTS // 4:
            tracker.query(lambda client: None)  # all points so far have arrived
        if nimg == POINTS // 2:  # those after them are on their way
            server.kill()

    try:
        log_run(tracker, root, fingerprint, kill)
        if not is_back:
            assert not tracker.close(5)
    finally:
        server.start()
    if is_back:
        assert tracker.close(TIMEOUT_S)
        assert os.listdir(root) == ["model"]
    else:
        summary = replayed(server.endpoint, root)
        assert (summary.spools, summary.problems, summary.obsolete) == (1, [], [])
    assert content(server, fingerprint) == expected
    assert replayed(server.endpoint, root) == ReplaySummary()


@pytest.mark.slow
def test_a_frozen_server_and_a_killed_writer(server, root, expected):
    fingerprint = uuid.uuid4().hex
    with frozen(server):
        command = [sys.executable, "-c", WRITER, server.endpoint, root, fingerprint]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout.readline() == "logged\n"
            writer.kill()
    (spool,) = stored_spools(root)
    with open(spool.urls[0].removeprefix("file://"), "ab") as stream:
        stream.write(b'{"kind":"metr')  # as if the kill had cut off a write
    summary = replayed(server.endpoint, root)
    assert (summary.spools, summary.unreadable) == (1, 1)
    found = content(server, fingerprint)
    # Points of the metric log stay there until they are needed; a rerun of the command logs them.
    without_log = expected["metrics"]["loss"][:POINTS]
    assert found == expected | {"metrics": expected["metrics"] | {"loss": without_log}}


@pytest.mark.slow
def test_a_killed_replay_is_repeated(server, front, root, expected):
    fingerprint = uuid.uuid4().hex
    front.faults.append(Fault("refuse", times=10_000))
    tracker = tracker_of(front.endpoint, root)
    log_run(tracker, root, fingerprint)
    assert not tracker.close(0.5)
    for part in ("runs/create", "log-batch", "model-versions/create"):
        front.faults[:] = [Fault("silence", part=part)]  # carried out, and no answer
        front.injected.clear()
        command = [sys.executable, "-c", REPLAYER, front.endpoint, root]
        with subprocess.Popen(command) as process:
            wait_for_fault(front)
            process.kill()
        assert len(stored_spools(root)) == 1
    assert replayed(front.endpoint, root).spools == 1
    assert content(server, fingerprint) == expected


@pytest.mark.slow
def test_a_replay_of_a_server_that_is_down_is_an_error_that_loses_nothing(server, front, root):
    front.faults.append(Fault("refuse", times=10_000))
    tracker = tracker_of(front.endpoint, root)
    log_run(tracker, root, uuid.uuid4().hex)
    assert not tracker.close(0.5)
    with pytest.raises(TrackingError, match="does not respond"):
        replayed(front.endpoint, root)
    assert len(stored_spools(root)) == 1


@pytest.mark.slow
def test_a_rerun_and_a_replay_log_each_point_once(server, front, root):
    """The rerun logs from the metric log with other times; the spool has the first ones."""
    fingerprint = uuid.uuid4().hex
    front.faults.append(Fault("refuse", times=10_000))
    for _ in range(2):
        tracker = tracker_of(front.endpoint, root)
        run = tracker.run("train", "vae", fingerprint, {}, {})
        run.log_metrics({"loss": 1.0}, 1)
        run.finish("FAILED" if front.faults else "FINISHED")
        assert tracker.close(0.5 if front.faults else TIMEOUT_S) is not bool(front.faults)
        front.faults.clear()
    assert replayed(front.endpoint, root).metrics == 0
    from mlflow import MlflowClient

    history = MlflowClient(server.endpoint).get_metric_history(run.run_id, "loss")
    assert [metric.step for metric in history] == [1]
    assert MlflowClient(server.endpoint).get_run(run.run_id).info.status == "FINISHED"


def test_of_two_runs_that_a_lost_answer_left_the_fuller_one_stays(server, root):
    store = tracker_of(server.endpoint, root).store
    record = RunRecord(
        run=1, stage="train", name="vae", fingerprint=uuid.uuid4().hex, params={}, inputs={}, time_ms=1
    )  # fmt: skip
    store.client()
    runs = [store.create(record, None).info.run_id for _ in range(3)]
    store.log(runs[1], [("loss", 1.0, 1, 1)])
    for _ in range(2):
        assert [run.info.run_id for run in store.find(record)] == runs[1:2]
    stages = [store.client().get_run(run).info.lifecycle_stage for run in runs]
    assert stages == ["deleted", "active", "deleted"]


def test_a_replay_waits_for_commands_that_log(server, root):
    tracker = tracker_of(server.endpoint, root)
    tracker.run("train", "vae", uuid.uuid4().hex, {}, {})
    tracker.query(lambda client: None)
    with pytest.raises(SpoolBusy, match="when it has ended"):
        replayed(server.endpoint, root)
    assert tracker.close(TIMEOUT_S)
    with exclusive(root):
        tracker = tracker_of(server.endpoint, root)
        run = tracker.run("train", "vae", uuid.uuid4().hex, {}, {})
        assert not tracker.close(TIMEOUT_S)
        assert run.run_id is None
    assert replayed(server.endpoint, root).runs == 1


def test_a_remote_root_keeps_what_was_refused(server, front):
    remote = f"memory://{uuid.uuid4().hex}"
    fingerprint = uuid.uuid4().hex
    front.faults.append(Fault("500", times=10_000))
    tracker = tracker_of(front.endpoint, remote)
    run = tracker.run("train", "vae", fingerprint, {"a": 1}, {})
    run.log_metrics({"loss": 1.0}, 1)
    run.finish()
    assert not tracker.close(5)
    front.faults.clear()
    summary = replayed(server.endpoint, remote)
    assert (summary.runs, summary.metrics, summary.spools) == (1, 1, 1)
    assert stored_spools(remote) == []


def test_the_command_sends_says_what_and_fails_if_something_stays(server, front, root, capsys):
    front.faults.append(Fault("refuse", times=10_000))
    tracker = tracker_of(front.endpoint, root)
    run = tracker.run("train", "vae", uuid.uuid4().hex, {}, {})
    run.log_metrics({"loss": 1.0}, 1)
    run.log_artifact(f"{root}/model/grid.png")
    run.log_artifact(f"{root}/model/config.json")
    assert not tracker.close(0.2)
    os.unlink(f"{root}/model/config.json")
    words = ["replay", "--recipe", "quickstart", "--json", "--set", f"root={root}", "--set"]
    assert main([*words, "tracking.enabled=false"]) == 2
    assert "tracking is off" in capsys.readouterr().err
    assert main([*words, f"tracking.uri={front.endpoint}"]) == 1
    assert "does not respond" in capsys.readouterr().err
    front.faults.clear()
    assert main([*words, f"tracking.uri={front.endpoint}"]) == 0
    output = capsys.readouterr()
    assert (
        "1 commands sent: 1 runs, 1 metric values, 1 files, 0 models, 0 reports; 0 left"
        in output.err
    )
    result = json.loads(output.out.splitlines()[-1])
    assert (result["status"], result["obsolete"]) == ("done", [f"{root}/model/config.json"])
    assert stored_spools(root) == []


def test_a_hostile_spool_uploads_nothing_else(server, root, tmp_path):
    """Who can write to the root can name no file outside it."""
    secret = tmp_path / "secret"
    secret.write_text("of the user")
    folder = tmp_path / "root" / SPOOL_FOLDER
    folder.mkdir()
    lines = [
        '{"kind":"run","run":1,"stage":"train","name":"x","fingerprint":"hostile","params":{},"inputs":{},"time_ms":1}',
        f'{{"kind":"artifact","run":1,"url":"{secret}","folder":"","digest":"{storage.sha256_of(str(secret))}"}}',
        '{"kind":"artifact","run":1,"url":"http://127.0.0.1:9/x","folder":"../..","digest":""}',
        '{"kind":"run","run":1e99}',
        "[" * 1000,
    ]
    (folder / f"20260101T000000-{'a' * 12}.jsonl").write_text("\n".join(lines) + "\n")
    summary = replayed(server.endpoint, root)
    assert (summary.artifacts, summary.unreadable) == (0, 3)
    (problem,) = summary.problems
    assert "tracking.roots" in problem
    assert len(stored_spools(root)) == 1
