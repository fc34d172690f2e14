"""The checks find what they are for: each change of a sound object is one problem, by name."""

from copy import deepcopy

import pytest

from tests.kubernetes import crd, other_kinds
from tests.kubernetes.checker import Checker
from tests.kubernetes.operator_rules import operator_problems
from tests.kubernetes.pod_security import (
    CONTAINER_RULES,
    HOUSE_RULES,
    POD_RULES,
    security_problems,
)
from tests.kubernetes.secrets import secret_problems

POD = {
    "enableServiceLinks": False,
    "securityContext": {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
    "containers": [
        {
            "name": "main",
            "image": "genmod-runtime:1",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "resources": {
                "requests": {"cpu": 1, "memory": "1Gi"},
                "limits": {"cpu": 1, "memory": "1Gi"},
            },
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        }
    ],
    "volumes": [{"name": "tmp", "emptyDir": {}}],
}
CONTAINER = ("containers", 0)
CONTEXT = (*CONTAINER, "securityContext")


def changed(value, path, new):
    """A copy with one field set, or removed if ``new`` is None."""
    copy = deepcopy(value)
    inner = copy
    for key in path[:-1]:
        inner = inner.setdefault(key, {}) if isinstance(inner, dict) else inner[key]
    if new is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return copy


BREAKS = {
    "host namespaces": (("hostPID",), True),
    "volume types": (("volumes",), [{"name": "root", "hostPath": {"path": "/"}}]),
    "safe sysctls": (("securityContext", "sysctls"), [{"name": "kernel.msgmax", "value": "1"}]),
    "pod seccomp is not Unconfined": (("securityContext", "seccompProfile", "type"), "Unconfined"),
    "pod user is not root": (("securityContext", "runAsUser"), 0),
    "no privileged container": ((*CONTEXT, "privileged"), True),
    "allowPrivilegeEscalation: false": ((*CONTEXT, "allowPrivilegeEscalation"), None),
    "capabilities: drop ALL": ((*CONTEXT, "capabilities", "drop"), ["NET_RAW"]),
    "capabilities: add NET_BIND_SERVICE alone": ((*CONTEXT, "capabilities", "add"), ["SYS_ADMIN"]),
    "runAsNonRoot: true": (("securityContext", "runAsNonRoot"), None),
    "user is not root": ((*CONTEXT, "runAsUser"), 0),
    "seccomp RuntimeDefault or Localhost": (("securityContext", "seccompProfile"), None),
    "no host ports": ((*CONTAINER, "ports"), [{"containerPort": 1, "hostPort": 1}]),
    "no host in probes": ((*CONTAINER, "livenessProbe"), {"httpGet": {"port": 1, "host": "a.org"}}),
    "procMount Default": ((*CONTEXT, "procMount"), "Unmasked"),
    "SELinux types": ((*CONTEXT, "seLinuxOptions"), {"type": "spc_t"}),
    "AppArmor is not Unconfined": ((*CONTEXT, "appArmorProfile"), {"type": "Unconfined"}),
    "no Windows host process": ((*CONTEXT, "windowsOptions"), {"hostProcess": True}),
    "runAsUser: 10001": (("securityContext", "runAsUser"), 1000),
    "readOnlyRootFilesystem: true": ((*CONTEXT, "readOnlyRootFilesystem"), None),
    "a volume for /tmp": ((*CONTAINER, "volumeMounts"), []),
    "requests and limits of cpu and memory": ((*CONTAINER, "resources", "limits", "memory"), None),
    "enableServiceLinks: false": (("enableServiceLinks",), None),
    "no tag latest": ((*CONTAINER, "image"), "genmod:latest"),
}


def test_a_sound_pod_has_no_problem():
    assert security_problems(POD) == []


def test_every_rule_has_a_pod_that_breaks_it():
    assert set(BREAKS) == {*POD_RULES, *CONTAINER_RULES, *HOUSE_RULES}


@pytest.mark.parametrize("rule", BREAKS)
def test_a_pod_that_breaks_a_rule_is_found(rule):
    found = security_problems(changed(POD, *BREAKS[rule]))
    assert any(f": {rule}" in line for line in found), found


def test_containers_of_every_kind_are_checked():
    bad = changed(POD["containers"][0], ("securityContext", "capabilities"), None)
    for kind in ("initContainers", "ephemeralContainers"):
        assert security_problems(changed(POD, (kind,), [bad])) != []


RAY = [
    (("spec", "headGroupSpec", "rayStartParam"), {}, "rayStartParam"),
    (
        ("spec", "headGroupSpec", "template", "spec", "containers", 0, "imagePullPolcy"),
        "Always",
        "Polcy",
    ),
    (("spec", "workerGroupSpecs", 0, "maxReplicas"), "many", "is not of type 'integer'"),
    (("spec", "autoscalerOptions", "version"), "v3", "is not one of"),
    (("spec", "headGroupSpec"), None, "'headGroupSpec' is a required property"),
    (("spec", "gcsFaultToleranceOptions", "storage", "size"), "big", "does not match"),
    (("spec", "managedBy"), "me", "must be either"),
    (("metadata", "lables"), {}, "lables"),
    (("apiVersion",), "ray.io/v2", "no such kind"),
    (("spec", "headGroupSpec", "template", "spec", "securityContext"), {}, "runAsUser: 10001"),
    (("spec", "autoscalerOptions", "securityContext"), {}, "drop ALL (container autoscaler)"),
    (("spec", "rayVersion"), None, "a token needs rayVersion"),
    (("spec", "workerGroupSpecs", 0, "rayStartParams", "labels"), "a=b", "labels belong"),
    (
        ("spec", "workerGroupSpecs", 0, "template", "spec", "restartPolicy"),
        "Always",
        "restartPolicy Never",
    ),
]


@pytest.mark.parametrize(("path", "new", "words"), RAY, ids=range(len(RAY)))
def test_a_wrong_cluster_is_found(path, new, words, rendered, definitions):
    (cluster,) = [value for value in rendered["cluster"] if value["kind"] == "RayCluster"]
    found = Checker().problems([changed(cluster, path, new)])
    assert any(words in line for line in found), found


def job_of(rendered, overlay):
    return next(value for value in rendered[overlay] if value["kind"] == "RayJob")


def test_broken_cel_rules_are_found(rendered, definitions):
    job = job_of(rendered, "queue")
    rule = {"condition": {"jobStatus": "FAILED"}, "policy": "DeleteCluster"}
    good = changed(job, ("spec", "deletionStrategy"), {"deletionRules": [rule]})
    del good["spec"]["ttlSecondsAfterFinished"]
    checker = Checker()
    assert checker.problems([good]) == []
    assert (checker.rules.applied, checker.rules.skipped) == (4, 1)

    both = changed(good, ("spec", "deletionStrategy", "onFailure"), {"policy": "DeleteSelf"})
    assert any("cannot be used together" in line for line in Checker().problems([both]))
    neither = changed(good, ("spec", "deletionStrategy", "deletionRules", 0, "condition"), {})
    assert any("requires either the JobStatus" in line for line in Checker().problems([neither]))
    empty = changed(job, ("spec", "deletionStrategy"), {})
    assert any("cannot be empty" in line for line in Checker().problems([empty]))


def test_required_fields_with_a_default_may_be_absent(rendered, definitions):
    (cluster,) = [value for value in rendered["cluster"] if value["kind"] == "RayCluster"]
    for key in ("maxReplicas", "minReplicas", "replicas"):
        cluster = changed(cluster, ("spec", "workerGroupSpecs", 0, key), None)
    assert Checker().problems([cluster]) == []


@pytest.mark.parametrize(
    ("path", "new", "words"),
    [
        (("spec", "suspend"), True, "neither suspend"),
        (("spec", "clusterSelector"), None, "either clusterSelector or rayClusterSpec"),
        (("spec", "clusterSelector"), {"a": "b"}, "has no ray.io/cluster"),
        (("spec", "shutdownAfterJobFinishes"), True, "must not end it"),
        (("spec", "ttlSecondsAfterFinished"), 5, "needs shutdownAfterJobFinishes"),
        (("spec", "runtimeEnvYAML"), "[1", "no YAML mapping"),
        (("spec", "entrypoint"), "echo $HOME", "a shell would change"),
        (("metadata", "name"), "9-" + "a" * 60, "no DNS label"),
        (("metadata", "labels", "kueue.x-k8s.io/queue-name"), "q", "a cluster of its own"),
    ],
)
def test_what_the_operators_refuse_is_found(path, new, words, rendered):
    job = job_of(rendered, "train")
    assert operator_problems(job) == []
    assert any(words in line for line in operator_problems(changed(job, path, new)))


def test_a_queued_job_with_an_autoscaler_is_found(rendered):
    job = job_of(rendered, "queue")
    assert operator_problems(job) == []
    path = ("spec", "rayClusterSpec", "enableInTreeAutoscaling")
    assert "Kueue takes no job with an autoscaler" in operator_problems(changed(job, path, True))


@pytest.mark.parametrize(
    ("kind", "path", "new", "words"),
    [
        ("Deployment", ("spec", "stratgy"), {}, "stratgy"),
        ("Deployment", ("spec", "replicas"), "two", "not of type"),
        ("CronJob", ("spec", "concurrencyPolicy"), 3, "not of type"),
        ("NetworkPolicy", ("spec", "ingres"), [], "ingres"),
        ("PodMonitor", ("spec", "podMetricsEndpoint"), [], "podMetricsEndpoint"),
        ("PodMonitor", ("spec", "podMetricsEndpoints", 0, "interval"), "soon", "does not match"),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "express"), "up == 0", "express"),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 2, "for"), "a while", "does not match"),
        ("LocalQueue", ("spec", "clusterQueue"), None, "required"),
        ("Service", ("apiVersion",), "v7", "no such kind"),
    ],
)
def test_other_wrong_objects_are_found(kind, path, new, words, rendered):
    objects = [x for values in rendered.values() for x in values if x["kind"] == kind]
    found = Checker().problems([changed(objects[0], path, new)])
    assert any(words in line for line in found), found


def test_kinds_of_other_projects_have_a_schema(rendered):
    used = {(x["apiVersion"], x["kind"]) for values in rendered.values() for x in values}
    assert set(other_kinds.SCHEMAS) <= used


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "Secret", "stringData": {"password": "hunter2"}},
        {"kind": "Secret", "data": {"x": "aHVudGVyMg=="}},
        {"kind": "ConfigMap", "data": {"AWS_SECRET_ACCESS_KEY": "hunter2"}},
        {"kind": "ConfigMap", "data": {"recipe.yaml": "uri: postgresql://mlflow:hunter2@db/x"}},
        {"kind": "ConfigMap", "data": {"credentials.ini": "aws_secret_access_key = hunter2"}},
        {
            "kind": "Pod",
            "spec": {"containers": [{"env": [{"name": "RAY_AUTH_TOKEN", "value": "hunter2"}]}]},
        },
        {
            "kind": "Pod",
            "spec": {"containers": [{"command": ["mlflow", "postgresql://a:hunter2@db"]}]},
        },
        {
            "kind": "Pod",
            "metadata": {"annotations": {"a": "-----BEGIN RSA PRIVATE KEY-----hunter2"}},
        },
    ],
)
def test_a_secret_in_plain_text_is_found_and_not_repeated(value):
    found = secret_problems(value)
    assert len(found) >= 1
    assert "hunter2" not in "".join(found)


def test_references_to_secrets_are_no_secrets():
    reference = {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}
    path = {"name": "RAY_AUTH_TOKEN_PATH", "value": "/run/secrets/ray"}
    pod = {"kind": "Pod", "spec": {"containers": [{"env": [reference, path]}]}}
    assert secret_problems(pod) == []
    assert secret_problems({"kind": "Secret", "stringData": {"password": ""}}) == []


def test_the_folder_of_definitions_can_be_set(monkeypatch, tmp_path):
    monkeypatch.setenv(crd.VARIABLE, str(tmp_path))
    assert crd.folder() == tmp_path
