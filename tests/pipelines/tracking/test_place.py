"""Where runs are logged: recipe, environment, root; each obstacle is reported before any work."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from genmod.config import parse
from genmod.errors import ConfigError
from pipelines.cli import main
from pipelines.tracking import registry
from pipelines.tracking.database import _revisions, check_database
from pipelines.tracking.place import TrackingConfig, TrackingPlace, portable, valid_prefix
from pipelines.tracking.tracker import Tracker
from tests.pipelines.tracking.mlflow_server import mlflow_server
from tests.processes import TIMEOUT_S

TEAM_NAMES = ["/Shared/digits", "team:digits", "O'Brien", "Ürün & Co (2)", "x" * 200]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A root with an MLflow database, made once because that takes seconds."""
    root = tmp_path_factory.mktemp("made") / "root"
    log(root)
    return root


@pytest.fixture
def root(made, tmp_path):
    """A copy of the root; its database names the folder that was copied, as after a move."""
    return Path(shutil.copytree(made, tmp_path / "root"))


def log(root, **config):
    """Log a run with an artifact and register its model."""
    model = Path(root, "models", "vae")
    model.mkdir(parents=True, exist_ok=True)
    for name in registry.REGISTERED_FILES:
        (model / name).write_text(name)
    tracker = Tracker(TrackingConfig(**config), str(root))
    run = tracker.run("train", "vae", "f" * 64, {}, {})
    run.log_artifact(str(model / "model.json"))
    version = registry.register(tracker, run, registry.ModelEntry("vae", "a" * 64, str(model), ""))
    registry.set_aliases(tracker, version, None, "1 mark")
    registry.tag_evaluation(tracker, version, f"{root}/evaluation/vae")
    run.finish()
    assert tracker.close(TIMEOUT_S)
    return version


def query(root, text, *values):
    with closing(sqlite3.connect(Path(root, "mlflow.db"))) as database, database:
        return database.execute(text, values).fetchall()


def place(root="/data/run", **config):
    return TrackingPlace.of(TrackingConfig(**config), str(root))


def test_the_environment_counts_where_the_recipe_is_silent(monkeypatch, tmp_path):
    assert place().uri == "sqlite:////data/run/mlflow.db"
    assert "are not set" in place().line()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.lab:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "/Shared/digits")
    found = place("s3://bucket/root")
    assert (found.uri, found.folder, found.experiment) == (
        "http://mlflow.lab:5000", "", "/Shared/digits"
    )  # fmt: skip
    assert "(MLFLOW_TRACKING_URI; the experiment by MLFLOW_EXPERIMENT_NAME)" in found.line()
    named = place(uri="http://other:1", experiment="mine")
    assert (named.uri, named.experiment) == ("http://other:1", "mine")
    assert "tracking.uri; MLFLOW_TRACKING_URI is not used" in named.line()
    assert place(enabled=False).uri == ""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///team.db")
    assert place().uri == f"sqlite:///{tmp_path}/team.db"
    assert place().folder == f"{tmp_path}/mlartifacts"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MLFLOW_TRACKING_URI", "databricks", "MLFLOW_TRACKING_URI=databricks: expected http"),
        ("MLFLOW_TRACKING_URI", "postgresql://host/db", "expected http"),
        ("MLFLOW_TRACKING_URI", "http://me:hunter2@host", "MLFLOW_TRACKING_USERNAME"),
        ("MLFLOW_EXPERIMENT_NAME", "a`b", "MLFLOW_EXPERIMENT_NAME=a`b: expected"),
    ],
)
def test_a_variable_without_valid_value_is_named(monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=says) as caught:
        place()
    assert "hunter2" not in str(caught.value)
    assert name in str(caught.value)
    assert place(enabled=False).uri == ""


def test_a_job_on_a_cluster_gets_addresses_and_no_credentials(monkeypatch):
    assert portable(TrackingConfig()) == (TrackingConfig(), [])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.lab")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team:digits")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    config, lines = portable(TrackingConfig())
    assert (config.uri, config.experiment) == ("https://mlflow.lab", "team:digits")
    assert any("MLFLOW_TRACKING_PASSWORD are not forwarded" in line for line in lines)
    assert "hunter2" not in repr((config, lines))
    named = TrackingConfig(uri="https://other", experiment="mine")
    assert portable(named)[0] == named
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////home/me/mlflow.db")
    config, lines = portable(TrackingConfig())
    assert config.uri is None
    assert "is a file of this machine" in lines[0]


@pytest.mark.parametrize("experiment", TEAM_NAMES)
def test_registered_names_are_valid(experiment):
    from mlflow.utils.validation import _validate_model_name

    found = place(experiment=experiment)
    tracker = SimpleNamespace(place=found)
    name = registry.registered_name(tracker, "n" * 64)
    _validate_model_name(name)
    assert len(name) <= 256
    assert not set(name) & set("'\"`/:")
    assert name == registry.registered_name(
        SimpleNamespace(place=place(experiment=experiment)), "n" * 64
    )


def test_names_of_different_experiments_stay_different():
    names = ["a/b", "a:b", "a'b", "a,b", "/a/b", "a/b/", "a-b", "é/", "x" * 200, "x" * 199 + "y"]
    assert len({valid_prefix(name) for name in names}) == len(names)
    assert [valid_prefix(name) for name in ("genmod", "my digits 2.0", "a@b+c")] == [
        "genmod", "my digits 2.0", "a@b+c"
    ]  # fmt: skip


@pytest.mark.parametrize("prefix", ["a/b", "x" * 192])
def test_a_prefix_that_mlflow_refuses_is_refused_in_the_recipe(prefix):
    with pytest.raises(ConfigError, match=r"tracking\.prefix is .*registered names have no '/'"):
        parse(TrackingConfig, {"prefix": prefix}, "tracking")


def test_an_experiment_as_teams_call_it_is_used_to_the_end(root):
    for experiment in TEAM_NAMES[:3]:
        version = log(root, experiment=experiment)
        tracker = Tracker(TrackingConfig(experiment=experiment), str(root))
        assert registry.champion(tracker, "vae").version == version.version
        assert tracker.close(TIMEOUT_S)
    names = {name for (name,) in query(root, "select name from experiments")}
    assert set(TEAM_NAMES[:3]) < names


def test_a_deleted_experiment_is_reported_before_work(root):
    query(root, "update experiments set lifecycle_stage = 'deleted' where name = 'genmod'")
    before = query(root, "select * from experiments")
    tracker = Tracker(TrackingConfig(), str(root))
    for check in (tracker.check, tracker.begin):
        with pytest.raises(ConfigError, match=r"is deleted; restore it with: MLFLOW_TRACKING_URI="):
            check()
    assert query(root, "select * from experiments") == before
    Tracker(TrackingConfig(experiment="another"), str(root)).check()


def test_a_deleted_experiment_of_a_server_is_reported_before_work(tmp_path):
    with mlflow_server() as server:
        server.lifecycle_stage = "deleted"
        tracker = Tracker(TrackingConfig(uri=server.uri), str(tmp_path))
        with pytest.raises(ConfigError, match="restore --experiment-id 1, or set another"):
            tracker.begin()


@pytest.mark.parametrize(
    ("revision", "says"),
    [("451aebb31d03", "mlflow db upgrade sqlite:///"), ("ffffffffffff", "made by a newer MLflow")],
)
def test_a_database_of_another_schema_is_reported_before_work(root, revision, says):
    check_database(place(root))
    query(root, "update alembic_version set version_num = ?", revision)
    with pytest.raises(ConfigError, match=says):
        Tracker(TrackingConfig(), str(root)).begin()


def test_the_schemas_are_those_that_mlflow_knows():
    from mlflow.store.db.utils import _get_latest_schema_revision

    known = list(_revisions())
    older = {revision for _, before in known for revision in before}
    assert {revision for revision, _ in known} - older == {_get_latest_schema_revision()}
    assert "451aebb31d03" in older


def test_a_file_that_is_no_database_is_reported_before_work(tmp_path):
    (tmp_path / "mlflow.db").write_text("notes\n" * 1000)
    with pytest.raises(ConfigError, match="is not MLflow's database"):
        Tracker(TrackingConfig(), str(tmp_path)).begin()
    (tmp_path / "mlflow.db").write_bytes(b"")
    Tracker(TrackingConfig(), str(tmp_path)).check()


def test_artifacts_follow_a_root_that_was_moved(made, tmp_path):
    copy = shutil.copytree(made, tmp_path / "old")
    Tracker(TrackingConfig(), str(copy)).begin()
    root = copy.rename(tmp_path / "moved ä#1 [2]")
    lines = Tracker(TrackingConfig(), str(root)).begin()
    assert lines[1] == f"MLflow: artifacts were in {copy}/mlartifacts, now in {root}/mlartifacts"
    assert len(Tracker(TrackingConfig(), str(root)).begin()) == 1
    ((uri,),) = query(root, "select artifact_uri from runs")
    folder = Path(unquote(uri.removeprefix("file://")))
    assert folder.is_relative_to(root)
    assert (folder / "model.json").read_text() == "model.json"
    tracker = Tracker(TrackingConfig(), str(root))
    champion = registry.champion(tracker, "vae")
    assert registry.model_root(tracker, champion) == f"{root}/models/vae"
    assert registry.evaluation_root(tracker, champion) == f"{root}/evaluation/vae"
    assert tracker.close(TIMEOUT_S)
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        assert str(copy) not in "\n".join(
            line for line in database.iterdump() if "INSERT INTO \"inputs\"" not in line
            and "_params" not in line
        )  # fmt: skip


def test_a_moved_database_leaves_places_alone_that_are_not_its_own(root):
    query(root, "update experiments set artifact_location = 's3://bucket/x' where name = 'genmod'")
    before = query(root, "select artifact_uri from runs")
    assert len(Tracker(TrackingConfig(), str(root)).begin()) == 1
    assert query(root, "select artifact_uri from runs") == before


def test_the_database_is_in_the_root_whatever_its_name(tmp_path):
    name = "~Läufe #2 [3] a;b&c=d+e"
    root = tmp_path / name
    log(root)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    ((status, uri),) = query(root, "select status, artifact_uri from runs")
    assert status == "FINISHED"
    folder = Path(unquote(uri.removeprefix("file://")))
    assert folder.is_relative_to(root)
    assert (folder / "model.json").is_file()


@pytest.mark.parametrize("name", ["what?x=4", "run 100%25", "back\\slash"])
def test_a_root_that_mlflow_would_cut_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"the root .* contains .*choose another root"):
        place(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    assert place(tmp_path / name, uri="http://host:1").uri == "http://host:1"


def test_a_dry_run_says_where_runs_go_and_why_they_cannot(root, monkeypatch, capsys, tmp_path):
    recipe = tmp_path / "my.yaml"
    recipe.write_text(
        f'root: {root}\ndata: {{source: "builtin:digits"}}\nmodel: {{vae: {{family: vae}}}}\n'
    )
    arguments = ["shard", "--recipe", str(recipe), "--dry-run"]
    assert main(arguments) == 0
    assert (
        f"MLflow: runs are logged to sqlite:///{root}/mlflow.db, experiment genmod (below the root"
        in (capsys.readouterr().out)
    )
    assert query(root, "select artifact_uri from runs")[0][0].startswith("file://")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    assert main(arguments) == 2
    assert "MLFLOW_TRACKING_URI=databricks" in capsys.readouterr().err
