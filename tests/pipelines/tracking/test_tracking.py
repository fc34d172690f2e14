"""Real MLflow on SQLite, and ports without an answer."""

from __future__ import annotations

import hashlib
import logging
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from genmod.errors import ConfigError
from pipelines.tracking import registry
from pipelines.tracking.tracker import Tracker, TrackingConfig, TrackingError
from tests.processes import TIMEOUT_S

INPUTS = {"data": ("memory://data", "ab" * 32)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A root whose MLflow database has been made: that takes seconds, once."""
    root = tmp_path_factory.mktemp("tracked")
    tracker = Tracker(TrackingConfig(), str(root))
    tracker.warm_up()
    assert tracker.close(TIMEOUT_S)
    return root


@pytest.fixture
def tracker(store):
    tracker = Tracker(TrackingConfig(), str(store))
    yield tracker
    assert tracker.close(TIMEOUT_S)


def _client(root: Path):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def _runs(root: Path, fingerprint: str):
    client = _client(root)
    experiment = client.get_experiment_by_name("genmod").experiment_id
    return client.search_runs([experiment], f"tags.`genmod.fingerprint` = '{fingerprint}'")


def _history(root: Path, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in _client(root).get_metric_history(run_id, key)]


def warnings(caplog):
    """What genmod said, not what others did meanwhile."""
    return [record for record in caplog.records if record.name.split(".")[0] == "genmod"]


def _log(root: Path, fingerprint: str, nimgs, status=None):
    tracker = Tracker(TrackingConfig(), str(root))
    run = tracker.run("train", "vae", fingerprint, {"train": {"lr": 0.1}, "seed": 3}, INPUTS)
    for nimg in nimgs:
        run.log_metrics({"loss": 1 / (1 + nimg), "fd[cls@1a]": float(nimg)}, nimg)
    if status:
        run.finish(status, {"digest": "d" * 64})
    assert tracker.close(TIMEOUT_S)


def test_a_stage_is_logged_whole(store, tmp_path):
    grid, weights = tmp_path / "grid.png", tmp_path / "weights.bin"
    grid.write_bytes(b"png")
    weights.write_bytes(bytes(2000))
    tracker = Tracker(TrackingConfig(upload_bytes=1000), str(store))
    run = tracker.run("train", "vae", "whole", {"train": {"lr": 0.1, "betas": [0, 1]}}, INPUTS)
    for nimg in range(0, 3000, 2):
        run.log_metrics({"loss": float(nimg)}, nimg)
    run.log_artifact(str(grid), "grids")
    run.log_artifact(str(weights), "model")
    run.finish("FINISHED", {"digest": "d" * 64})
    assert tracker.close(TIMEOUT_S)
    (found,) = _runs(store, "whole")
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "train vae"
    assert found.data.params == {"train.lr": "0.1", "train.betas": "[0, 1]"}
    assert found.data.tags["genmod.digest"] == "d" * 64
    assert _history(store, found.info.run_id, "loss") == [(n, float(n)) for n in range(0, 3000, 2)]
    (dataset,) = found.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("data", ("ab" * 32)[:36])
    assert "memory://data" in dataset.dataset.source
    folder = Path(found.info.artifact_uri.removeprefix("file://"))
    assert folder.is_relative_to(store / "mlartifacts")
    assert (folder / "grids" / "grid.png").read_bytes() == b"png"
    digest = hashlib.sha256(bytes(2000)).hexdigest()
    reference = (folder / "model" / "weights.bin.url").read_text()
    assert reference == f"{weights}\nsha256:{digest}\n"


def test_a_finished_run_is_not_logged_again(store):
    _log(store, "again", [1, 2], "FINISHED")
    _log(store, "again", [1, 2, 3], "FINISHED")
    (found,) = _runs(store, "again")
    assert [nimg for nimg, _ in _history(store, found.info.run_id, "loss")] == [1, 2]


@pytest.mark.parametrize("status", [None, "FAILED"])
def test_an_unfinished_run_goes_on_and_nothing_is_doubled(store, status):
    _log(store, f"on-{status}", [1, 2, 4], status)
    _log(store, f"on-{status}", [1, 2, 4, 6, 8], "FINISHED")
    (found,) = _runs(store, f"on-{status}")
    assert found.info.status == "FINISHED"
    for key in ("loss", "fd_cls_1a"):
        assert [n for n, _ in _history(store, found.info.run_id, key)] == [1, 2, 4, 6, 8]


def test_missing_points_are_read_once_and_only_for_an_open_run(store):
    reads = []

    def points(after_nimg):
        reads.append(after_nimg)
        return [(4, {"loss": 4.0}), (6, {"loss": 6.0})]

    for _ in range(2):
        tracker = Tracker(TrackingConfig(), str(store))
        run = tracker.run("train", "vae", "catch-up", {}, {})
        run.log_metrics({"loss": 2.0}, 2)
        run.catch_up(2, points)
        run.catch_up(6, points)
        run.finish()
        assert tracker.close(TIMEOUT_S)
    (found,) = _runs(store, "catch-up")
    assert _history(store, found.info.run_id, "loss") == [(2, 2.0), (4, 4.0), (6, 6.0)]
    assert reads == [2]


def test_a_missing_artifact_is_one_warning_and_the_rest_is_logged(store, caplog):
    with caplog.at_level(logging.WARNING, "genmod"):
        tracker = Tracker(TrackingConfig(), str(store))
        run = tracker.run("sample", "vae", "missing", {}, {})
        run.log_artifact(str(store / "nothing.png"))
        run.log_artifact(str(store / "nothing either.png"))
        run.log_metrics({"rows": 5.0}, 0)
        run.finish()
        tracker.close(TIMEOUT_S)
    assert len(warnings(caplog)) == 1
    (found,) = _runs(store, "missing")
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {"rows": 5.0}


def test_a_server_that_is_down_costs_no_time_and_one_warning(tmp_path, caplog):
    with socket.socket() as held:  # bound, not listening: connections are refused
        held.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{held.getsockname()[1]}"
        tracker = Tracker(TrackingConfig(uri=uri), "memory://nowhere")
        tracker.warm_up()
        with caplog.at_level(logging.WARNING, "genmod"):
            start_s = time.monotonic()
            run = tracker.run("train", "vae", "down", {"a": 1}, INPUTS)
            for nimg in range(100):
                run.log_metrics({"loss": 1.0}, nimg)
            run.finish()
            called_s = time.monotonic() - start_s
            assert not tracker.close()
    assert called_s < 10
    assert time.monotonic() - start_s < 120
    (record,) = warnings(caplog)
    assert uri in record.message
    assert "Connection refused" in record.message


def test_a_server_that_never_answers_is_given_up(caplog):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        tracker = Tracker(TrackingConfig(uri=uri), "memory://nowhere")
        with caplog.at_level(logging.WARNING, "genmod"):
            run = tracker.run("train", "vae", "silent", {}, {})
            run.finish()
            start_s = time.monotonic()
            assert not tracker.close(timeout_s=0.5)
            assert time.monotonic() - start_s < 9
    assert len(warnings(caplog)) == 1


def test_a_question_to_a_dead_server_is_an_error():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{held.getsockname()[1]}"
        tracker = Tracker(TrackingConfig(uri=uri), "memory://nowhere")
        with pytest.raises(TrackingError, match="does not respond"):
            registry.champion(tracker, "vae")
        tracker.close()


def test_off_means_that_nothing_happens(tmp_path):
    tracker = Tracker(TrackingConfig(enabled=False), str(tmp_path))
    tracker.warm_up()
    run = tracker.run("train", "vae", "off", {}, {})
    run.log_metrics({"loss": 1.0}, 1)
    run.catch_up(9, lambda after_nimg: pytest.fail("read"))
    run.finish()
    assert tracker.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"tracking\.enabled"):
        registry.champion(tracker, "vae")


def test_a_remote_root_needs_a_server():
    with pytest.raises(ConfigError, match=r"tracking\.uri"):
        Tracker(TrackingConfig(), "s3://bucket/root")


def _candidate(folder: Path, digest: str) -> registry.ModelEntry:
    folder.mkdir(exist_ok=True)
    for name in registry.REGISTERED_FILES:
        (folder / name).write_text(name)
    return registry.ModelEntry("gan", digest, str(folder), "root: r\n")


def test_two_models_with_one_registered_name_are_told_apart(store, tmp_path):
    """``a-b`` and ``c`` give the same name as ``a`` and ``b-c``."""
    trackers = [Tracker(TrackingConfig(prefix=prefix), str(store)) for prefix in ("a-b", "a")]
    models = ("c", "b-c")
    names = [registry.registered_name(*pair) for pair in zip(trackers, models, strict=True)]
    assert names == ["a-b-c"] * 2
    entries = [replace(_candidate(tmp_path / "m1", "1" * 64), name=name) for name in models]
    run = trackers[0].run("train", "c", "f1", {}, {})
    registry.set_aliases(
        trackers[0], registry.register(trackers[0], run, entries[0]), None, "1 mark"
    )
    run = trackers[1].run("train", "b-c", "f2", {}, {})
    with pytest.raises(ConfigError, match="a-b-c in MLflow belongs to the model 'c' of another"):
        registry.register(trackers[1], run, entries[1])
    with pytest.raises(ConfigError, match=r"set another tracking\.prefix"):
        registry.champion(trackers[1], "b-c")
    assert registry.champion(trackers[0], "c") is not None
    for tracker in trackers:
        assert tracker.close(TIMEOUT_S)


def test_versions_and_the_champion(store, tracker, tmp_path):
    assert registry.champion(tracker, "gan") is None
    run = tracker.run("train", "gan", "reg1", {}, {})
    first = registry.register(tracker, run, _candidate(tmp_path / "m1", "1" * 64))
    assert first.name == "genmod-gan"
    assert registry.champion(tracker, "gan") is None
    registry.register_in_background(tracker, run, _candidate(tmp_path / "m1", "1" * 64))
    assert registry.register(tracker, run, _candidate(tmp_path / "m1", "1" * 64)) == first
    run.finish()
    second = registry.register(
        tracker, tracker.run("train", "gan", "reg2", {}, {}), _candidate(tmp_path / "m2", "2" * 64)
    )
    assert second.version != first.version
    for _ in range(2):
        registry.set_aliases(tracker, second, first, "2 mark")
        registry.tag_evaluation(tracker, second, "memory://evaluation")
        found = registry.champion(tracker, "gan")
        assert found is not None
        assert (found.version, found.digest) == (second.version, "2" * 64)
        assert (found.root, found.evaluation) == (str(tmp_path / "m2"), "memory://evaluation")
    aliases = registry.aliases(tracker, "gan")
    assert (aliases.champion, aliases.mark) == (found, "2 mark")
    assert aliases.previous is not None
    assert aliases.previous.version == first.version
    registry.set_aliases(tracker, first, None, "3 mark")
    aliases = registry.aliases(tracker, "gan")
    assert (aliases.champion, aliases.previous, aliases.mark) == (first, None, "3 mark")
    assert [each.digest[0] for each in registry.registered_versions(tracker, "gan")] == ["1", "2"]
    assert registry.registered_versions(tracker, "vae") == []
    (logged,) = _runs(store, "reg2")
    folder = Path(logged.info.artifact_uri.removeprefix("file://")) / "model"
    assert sorted(p.name for p in folder.iterdir()) == ["data", "recipe.yaml"]
    assert sorted(p.name for p in (folder / "data").iterdir()) == sorted(registry.REGISTERED_FILES)
