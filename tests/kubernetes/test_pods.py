"""The pods of head, workers, submitter and CronJob: valid; played by podman with a probe as their command."""

import os
import subprocess

import kubernetes_validate
import pytest
import typer

from pipelines.cli.app import app
from tests.kubernetes.checker import KUBERNETES
from tests.kubernetes.played import play, reason_not_to_play
from tests.kubernetes.pod_security import security_problems
from tests.kubernetes.pods import cron_pod, ray_pods, submitter_pod

NAMES = ("genmod-head", "genmod-cpu", "genmod-gpu", "genmod-train-submitter", "genmod-retrain-1")
MEMORY = {"genmod-head": "4Gi", "genmod-cpu": "16Gi", "genmod-gpu": "64Gi"}
MEMORY |= {"genmod-train-submitter": "1Gi", "genmod-retrain-1": "2Gi"}


@pytest.fixture(scope="session")
def pods(rendered):
    (cluster,) = [value for value in rendered["cluster"] if value["kind"] == "RayCluster"]
    (job,) = [value for value in rendered["train"] if value["kind"] == "RayJob"]
    (cron_job,) = [value for value in rendered["retrain-cronjob"] if value["kind"] == "CronJob"]
    found = [*ray_pods(cluster), submitter_pod(job), cron_pod(cron_job)]
    return {pod["metadata"]["name"]: pod for pod in found}


@pytest.mark.parametrize("name", NAMES)
def test_a_pod_is_valid(name, pods):
    kubernetes_validate.validate(pods[name], KUBERNETES, strict=True)
    assert security_problems(pods[name]["spec"]) == []
    assert set(pods) == set(NAMES)


def test_the_nodes_are_started_with_their_groups_settings(pods):
    head, cpu, gpu = (pods[name]["spec"]["containers"][0]["args"][0] for name in NAMES[:3])
    assert "--head" in head
    assert "--num-cpus=0" in head
    assert '--resources="{\\"driver\\": 8}"' in cpu
    assert "--num-gpus=1" in gpu
    assert "--labels=capacity=spot,accelerator=gpu" in gpu or "accelerator=gpu,capacity=spot" in gpu
    shell = f"set -- {cpu.partition(';')[2]}; printf '%s\\n' \"$@\""
    words = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert '--resources={"driver": 8}' in words.splitlines()


def templates_of(value):
    """Labels and ports of the pods that an object of a built-in kind describes."""
    if isinstance(value, list):
        for item in value:
            yield from templates_of(item)
    elif isinstance(value, dict):
        if "containers" in value.get("spec", {}) and "metadata" in value:
            ports = [p for c in value["spec"]["containers"] for p in c.get("ports", ())]
            yield value["metadata"].get("labels", {}), ports
        for item in value.values():
            yield from templates_of(item)


def selectors_of(policy):
    """Selectors of pods of this namespace in a network policy, and the ports that its rules open to them."""
    spec = policy["spec"]
    own = spec["podSelector"].get("matchLabels", {})
    yield own, [p for rule in spec.get("ingress", ()) for p in rule.get("ports", ())]
    for key, side in (("ingress", "from"), ("egress", "to")):
        for rule in spec.get(key, ()):
            for peer in rule.get(side, ()):
                if "podSelector" in peer and "namespaceSelector" not in peer:
                    ports = rule.get("ports", ()) if side == "to" else ()
                    yield peer["podSelector"].get("matchLabels", {}), ports


def test_network_policies_and_monitors_select_pods_that_exist(pods, rendered):
    objects = [x for values in rendered.values() for x in values if not x["kind"].startswith("Ray")]
    templates = [found for value in (*objects, *pods.values()) for found in templates_of(value)]
    policies = [x for x in rendered["cluster"] if x["kind"] == "NetworkPolicy"]
    for policy in policies:
        for labels, ports in selectors_of(policy):
            chosen = [there for there in templates if labels.items() <= there[0].items()]
            assert chosen, (policy["metadata"]["name"], labels)
            known = {port["containerPort"] for _, there in chosen for port in there}
            assert {port["port"] for port in ports} <= known, policy["metadata"]["name"]
    (monitor,) = [x for x in rendered["cluster"] if x["kind"] == "PodMonitor"]
    labels = monitor["spec"]["selector"]["matchLabels"]
    names = {
        p["name"] for there, ports in templates if labels.items() <= there.items() for p in ports
    }
    assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= names
    assert any(policy["spec"]["podSelector"] == {} for policy in policies)


def commands(rendered):
    for objects in rendered.values():
        for value in objects:
            if value["kind"] in ("RayJob", "RayCronJob"):
                spec = value["spec"].get("jobTemplate", value["spec"])
                yield spec["entrypoint"].removeprefix("python -m pipelines ").split()
            elif value["kind"] == "CronJob":
                yield cron_pod(value)["spec"]["containers"][0]["command"][1:]


def test_every_command_is_one_of_genmod(rendered):
    group = typer.main.get_group(app)
    found = list(commands(rendered))
    for words in found:
        command = group.commands[words[0]]
        parameters = command.make_context(words[0], words[1:]).params
        assert parameters["recipe"].endswith("recipe.yaml")
    assert len(found) >= 9


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_pod_is_played(name, pods, rendered, tmp_path):
    """Its user, read-only root, capabilities, limit, files and variables are those of its object."""
    if reason := reason_not_to_play():
        pytest.skip(reason)
    objects = [*rendered["cluster"], *rendered["train"], *rendered["retrain-cronjob"]]
    lines = play(pods[name], objects, f"test-{os.getpid()}-{name}", tmp_path)
    text = " ".join("\n".join(lines).split())
    for words in (
        "user 10001:10001", "writes /tmp", "root is read only", "CapEff: 0000000000000000",
        "NoNewPrivs: 1", "Seccomp: 2", "variable RAY_grpc_client_keepalive_time_ms=10000",
    ):  # fmt: skip
        assert words in text
    assert f"memory {int(MEMORY[name].removesuffix('Gi')) << 30}" in lines
    container = pods[name]["spec"]["containers"][0]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    for folder, file in (("/etc/genmod/job", "recipe.yaml"), ("/run/secrets/store", "credentials")):
        assert (f"file {folder}/{file}" in lines) == (folder in mounts)
    has_token = "variable RAY_AUTH_TOKEN=secret of a test" in lines
    assert has_token or "file /run/secrets/ray/auth_token" in lines
    assert ("variable RAY_AUTH_TOKEN_PATH=/run/secrets/ray/auth_token" in lines) == (not has_token)
    for words in (["secret", "ls"], ["volume", "ls"], ["pod", "ls"]):
        done = subprocess.run(["podman", *words], capture_output=True, text=True, check=True)
        assert f"test-{os.getpid()}-" not in done.stdout
