"""genmod doctor on a running Ray: a sound node, and faults that are found by the name of their check."""

import json
from pathlib import Path

import pytest
import yaml

from pipelines.cli import main


@pytest.fixture
def recipe(ray_session, tmp_path):
    """A function that writes a recipe for the running Ray, with changes of its sections."""
    import ray

    document = {
        "root": str(tmp_path / "root"),
        "data": {"source": "builtin:digits"},
        "model": {"vae": {"family": "vae", "train": {"nimg": 1024}}},
        "cluster": {"address": ray.get_runtime_context().gcs_address},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }

    def write(**sections):
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(document | sections))
        return str(tmp_path / "my.yaml")

    return write


def findings(recipe, capsys, code):
    """Run the doctor; check -> findings, and what it printed."""
    assert main(["doctor", "--recipe", recipe, "--json"]) == code
    out = capsys.readouterr().out
    found: dict[str, list[dict[str, str]]] = {}
    for each in json.loads(out.splitlines()[-1])["findings"]:
        found.setdefault(each["check"], []).append(each)
    return found, out


@pytest.mark.ray
def test_a_sound_node_has_no_fatal_finding(recipe, tmp_path, capsys):
    found, out = findings(recipe(), capsys, 0)
    levels = {check: {each["level"] for each in group} for check, group in found.items()}
    for check in (
        "genmod",
        "ray",
        "disk",
        "storage",
        "create-if-absent",
        "known-answers",
        "mlflow",
    ):
        assert levels[check] == {"ok"}, found[check]
    assert "1 nodes in" in out
    assert ": 0 fatal" in out
    assert not any(Path(tmp_path / "root").rglob("*")), "what it wrote is removed"


@pytest.mark.ray
def test_mlflow_that_does_not_answer_is_a_warning_by_name(recipe, capsys):
    found, out = findings(recipe(tracking={"uri": "http://127.0.0.1:9"}), capsys, 0)
    warned = {name for name, group in found.items() for each in group if each["level"] != "ok"}
    assert warned == {"mlflow", "registry"}, "runs go on and spool what MLflow misses"
    (finding,) = found["mlflow"]
    assert (finding["level"], finding["node"]) == ("warning", "driver")
    assert "http://127.0.0.1:9" in finding["text"]
    assert finding["remedy"] in out


@pytest.mark.ray
def test_a_store_that_cannot_be_reached_is_fatal_by_name(recipe, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    found, _ = findings(recipe(root="s3://bucket/run", tracking={"enabled": False}), capsys, 1)
    fatal = {name for name, group in found.items() for each in group if each["level"] == "fatal"}
    assert fatal == {"storage"}, found
    assert all(each["remedy"] for each in found["storage"])


@pytest.mark.ray
def test_a_recipe_that_fits_no_node_is_one_line(recipe, capsys):
    import ray

    cluster = {"address": ray.get_runtime_context().gcs_address, "cpus_per_worker": 64}
    assert main(["doctor", "--recipe", recipe(cluster=cluster)]) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "error" in text]
    assert "64" in line
    assert "2" in line
