"""An MLflow server decides neither about files of this machine nor about addresses outside the recipe's."""

import logging
import os
import stat
from pathlib import Path

import pytest

from genmod.errors import ConfigError, DataError
from genmod.manifest import Manifest, publish
from pipelines.recipe.context import Context
from pipelines.recipe.recipe import load_recipe
from pipelines.stages.champion_evidence import metrics_of_champion
from pipelines.stages.champions import Champions
from pipelines.tracking import registry
from pipelines.tracking.artifacts import ArtifactPlace
from pipelines.tracking.tracker import Tracker, TrackingConfig
from tests.pipelines.tracking.mlflow_server import mlflow_server, version
from tests.processes import TIMEOUT_S

DIGEST = "a" * 64


@pytest.fixture
def server():
    with mlflow_server() as server:
        yield server


@pytest.fixture
def victim(tmp_path):
    """A folder with a file that an upload would replace."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "model.json").write_text("mine")
    return folder


def upload(server, tmp_path, **config):
    """Log one file as an artifact, as a stage does."""
    source = tmp_path / "made" / "model.json"
    source.parent.mkdir(exist_ok=True)
    source.write_text("of genmod")
    tracker = Tracker(TrackingConfig(uri=server.uri, **config), str(tmp_path / "root"))
    run = tracker.run("train", "vae", "f" * 64, {}, {})
    run.log_artifact(str(source))
    run.finish()
    return tracker.close(TIMEOUT_S)


def test_an_artifact_goes_to_the_server_itself(server, tmp_path, caplog):
    for uri in (
        "mlflow-artifacts:/1/run/artifacts",
        f"{server.uri}/api/2.0/mlflow-artifacts/artifacts/1",
    ):
        server.artifact_uri = uri
        assert upload(server, tmp_path)
    paths = [path.removeprefix("/api/2.0/mlflow-artifacts/artifacts/") for path in server.received]
    assert paths == ["1/run/artifacts/model.json", "1/model.json"]
    assert set(server.received.values()) == {b"of genmod"}
    assert [r for r in caplog.records if r.name == "genmod"] == []


@pytest.mark.parametrize(
    "uri",
    [
        "file://{victim}", "{victim}", "file:{victim}", "file://localhost{victim}", "file:///{victim}/../victim",
        "./victim", "victim", "~/victim", "s3://bucket/x", "gs://bucket/x", "wasbs://c@a.blob.core.windows.net/x",
        "abfss://c@a.dfs.core.windows.net/x", "ftp://127.0.0.1/x", "sftp://127.0.0.1/x", "hdfs://127.0.0.1/x",
        "viewfs://x/y", "dbfs:/x", "dbfs:/Volumes/a/b/c", "databricks://p/x", "b2://b/x", "r2://b@a/x",
        "runs:/0123/x", "models:/m/1", "http://127.0.0.1:9/x", "https://127.0.0.1:9/x",
        "mlflow-artifacts://127.0.0.1:9/x", "mlflow-artifacts://user:pw@host/x", "memory://x",
        "simplecache::file://{victim}", "{server}/../x", "{server}/%2e%2e/x", "{server}/x?a=1",
        "{server}@127.0.0.1:9/x", "file://{victim}%00", "mlflow-artifacts:/x\x1b]0;t\x07", "",
    ],
)  # fmt: skip
def test_an_address_of_the_servers_choice_gets_nothing(
    server, victim, tmp_path, caplog, monkeypatch, uri
):
    monkeypatch.chdir(tmp_path)
    server.artifact_uri = uri.format(victim=victim, server=server.uri)
    with caplog.at_level(logging.WARNING, "genmod"):
        assert upload(server, tmp_path)
    assert server.received == {}
    assert [(p.name, p.read_text()) for p in victim.iterdir()] == [("model.json", "mine")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "root", "victim"]
    assert [p.name for p in (tmp_path / "root").iterdir()] == ["spool"]
    (record,) = [r for r in caplog.records if r.name == "genmod"]
    assert "tracking.artifacts" in record.message
    assert record.message.isprintable()


def test_a_link_in_the_store_sends_no_other_file(server, victim, tmp_path, caplog):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "model.json").symlink_to(victim / "model.json")
    server.artifact_uri = "mlflow-artifacts:/1/run/artifacts"
    tracker = Tracker(TrackingConfig(uri=server.uri), str(tmp_path / "root"))
    run = tracker.run("train", "vae", "f" * 64, {}, {})
    run.log_artifact(f"{tmp_path}/made/model.json")
    with caplog.at_level(logging.WARNING, "genmod"):
        tracker.close(TIMEOUT_S)
    assert server.received == {}
    assert "outside its folder" in caplog.text


def test_a_place_that_the_recipe_names_is_used(server, victim, tmp_path):
    server.artifact_uri = victim.as_uri() + "/1/artifacts"
    assert upload(server, tmp_path, artifacts=str(victim))
    assert (victim / "1" / "artifacts" / "model.json").read_text() == "of genmod"
    server.artifact_uri = tmp_path.as_uri() + "/victims/x"
    assert upload(server, tmp_path, artifacts=str(victim))
    assert not (tmp_path / "victims").exists()
    place = ArtifactPlace(server.uri, "", "s3://bucket/mlflow")
    assert place.check("s3://bucket/mlflow/1/x") == "s3://bucket/mlflow/1/x"
    for uri in ("s3://bucket/mlflows/x", "s3://other/mlflow", "s3://bucket/mlflow/../x"):
        with pytest.raises(ConfigError, match=r"tracking\.artifacts"):
            place.check(uri)


def test_a_redirect_is_not_followed(server, tmp_path, caplog):
    with mlflow_server() as other, caplog.at_level(logging.WARNING, "genmod"):
        server.redirect = f"{other.uri}/collect"
        upload(server, tmp_path)
        assert other.asked == []
    assert server.received


def test_an_embedded_store_writes_below_its_own_folder(tmp_path, victim):
    own = tmp_path / "root" / "mlartifacts"
    own.mkdir(parents=True)
    (own / "link").symlink_to(victim)
    place = ArtifactPlace("sqlite:///x", str(own), None)
    assert place.check(f"file://{own}/1/run") == f"file://{own}/1/run"
    for uri in (
        f"file://{own}/link/1",
        f"file://{own}/../victim",
        f"file://{own}s",
        str(own),
        "mlflow-artifacts:/x",
    ):
        with pytest.raises(ConfigError, match=r"tracking\.artifacts"):
            place.check(uri)


@pytest.mark.parametrize("uri", [None, "sqlite:///{}/other/tracking.db"])
def test_the_database_is_for_this_user_alone(tmp_path, uri):
    before = os.umask(0o022)
    try:
        config = TrackingConfig(uri=uri and uri.format(tmp_path))
        tracker = Tracker(config, str(tmp_path / "root"))
        run = tracker.run("train", "vae", "f" * 64, {}, {})
        run.finish()
        assert tracker.close(TIMEOUT_S)
    finally:
        os.umask(before)
    (database,) = tmp_path.rglob("*.db")
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in database.parent.iterdir()}
    assert modes.pop("mlartifacts") == 0o700
    assert set(modes.values()) == {0o600}


def champion_of(server, root, **tags):
    """The champion as a command with this root sees it, when its version has these tags."""
    server.versions, server.alias = [version(3, **tags)], "3"
    tracker = Tracker(TrackingConfig(uri=server.uri), str(root))
    try:
        return registry.champion(tracker, "vae"), tracker
    finally:
        tracker.warm_up()


def context_of(server, root, *assignments):
    path = root.parent / "my.yaml"
    path.write_text(
        f'root: {root}\ndata: {{source: "builtin:digits"}}\nmodel: {{vae: {{family: vae}}}}\n'
        f"tracking: {{uri: '{server.uri}'}}\n"
    )
    return Context(load_recipe(str(path), assignments), ("vae",))


def evaluation(folder, model_digest):
    manifest = Manifest(
        kind="evaluation",
        fingerprint="e" * 64,
        metadata={"model_digest": model_digest, "metrics": []},
    )
    publish(str(folder), manifest)
    return str(folder)


def metrics(server, root, *assignments, **tags):
    """What promote reads of a champion whose version has these tags."""
    tags = {"root": f"{root}/models/vae", **tags}
    server.versions, server.alias = [version(3, **tags)], "3"
    context = context_of(server, root, *assignments)
    champion = registry.champion(context.tracker, "vae")
    model = Champions(context, "vae").ledger_model(champion)
    return metrics_of_champion(context, model)


def test_a_champions_tag_leads_only_below_the_root(server, tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    inside = evaluation(root / "retrain" / "v0002" / "evaluation" / "vae", DIGEST)
    outside = evaluation(other / "evaluation" / "vae", DIGEST)
    assert metrics(server, root, digest=DIGEST, evaluation=inside) == ()
    with mlflow_server() as elsewhere:
        for url in (
            outside,
            f"{root}/../other/evaluation/vae",
            f"{root}s",
            f"file://{outside}",
            f"{elsewhere.uri}/latest/meta-data",
            "s3://bucket/evaluation",
            "memory://x",
        ):
            with pytest.raises(ConfigError, match=r"tracking\.roots"):
                metrics(server, root, digest=DIGEST, evaluation=url)
        assert elsewhere.asked == []
    assert (
        metrics(server, root, f"tracking.roots=[{other}]", digest=DIGEST, evaluation=outside) == ()
    )


def test_a_champion_is_the_model_that_its_tags_name(server, tmp_path):
    root = tmp_path / "root"
    url = evaluation(root / "evaluation" / "vae", "b" * 64)
    with pytest.raises(DataError, match="is of the model bbbbbbbbbbbb, but genmod-vae version 3"):
        metrics(server, root, digest=DIGEST, evaluation=url)


@pytest.mark.parametrize(
    "tags",
    [
        {"digest": "../../etc"}, {"digest": "A" * 64}, {"digest": DIGEST, "root": "ftp://host/x"},
        {"digest": DIGEST, "root": "s3://user:hunter2@b/x"}, {"digest": DIGEST, "evaluation": "a::b"},
        {"digest": DIGEST, "evaluation": "\x1b]0;title\x07"},
    ],
)  # fmt: skip
def test_tags_that_genmod_does_not_write(server, tmp_path, tags):
    server.versions, server.alias = [version(3, **tags)], "3"
    tracker = Tracker(TrackingConfig(uri=server.uri), str(tmp_path))
    with pytest.raises(DataError, match="genmod-vae version 3 in MLflow") as caught:
        registry.champion(tracker, "vae")
    assert str(caught.value).isprintable()
    assert "hunter2" not in str(caught.value)


def test_a_version_of_another_digest_is_not_the_one_that_was_asked_for(server, tmp_path):
    server.versions = [version(1, digest="b" * 64), version(2, digest=DIGEST)]
    tracker = Tracker(TrackingConfig(uri=server.uri), str(tmp_path))
    assert registry.version_of(tracker, "vae", DIGEST).version == "2"
    assert registry.version_of(tracker, "vae", "c" * 64) is None


def test_the_retrained_model_is_read_only_from_the_recipes_places(server, tmp_path):
    server.versions, server.alias = [version(3, digest=DIGEST, root="http://127.0.0.1:9/x")], "3"
    tracker = Tracker(TrackingConfig(uri=server.uri), str(tmp_path))
    champion = registry.champion(tracker, "vae")
    with pytest.raises(ConfigError, match=r"tracking\.roots"):
        registry.model_root(tracker, champion)
    assert Path(tmp_path, "x").exists() is False
