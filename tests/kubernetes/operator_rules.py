"""What KubeRay's and Kueue's controllers refuse although the definitions allow it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST = {"RayCluster": 53, "RayJob": 47, "RayCronJob": 40}
"""Characters of names: KubeRay appends to them and Kubernetes allows 63."""
_SHELL = re.compile(r"[$`\\!]")
"""What a shell would change within the double quotes into which KubeRay puts texts."""
_QUEUE = "kueue.x-k8s.io/queue-name"
_MOST_GROUPS = 7


def operator_problems(value: dict[str, Any]) -> list[str]:
    """Why a controller would refuse an object of a Ray kind."""
    kind, spec = value.get("kind", ""), value.get("spec") or {}
    metadata = value.get("metadata") or {}
    if kind not in _LONGEST:
        return []
    found: list[str] = []
    name = str(metadata.get("name", ""))
    if not _NAME.fullmatch(name) or len(name) > _LONGEST[kind]:
        found.append(f"name {name[:60]!r} is no DNS label of at most {_LONGEST[kind]} characters")
    if kind == "RayCluster":
        found += _cluster(spec)
    else:
        queued = _QUEUE in (metadata.get("labels") or {})
        found += _job(spec if kind == "RayJob" else spec.get("jobTemplate") or {}, queued)
    return found


def _job(spec: dict[str, Any], queued: bool) -> Iterator[str]:
    selector, cluster = spec.get("clusterSelector"), spec.get("rayClusterSpec")
    if bool(selector) == bool(cluster):
        yield "a job needs either clusterSelector or rayClusterSpec"
    if selector and not selector.get("ray.io/cluster"):
        yield "clusterSelector has no ray.io/cluster"
    if selector and (spec.get("suspend") or spec.get("submissionMode") == "SidecarMode"):
        yield "clusterSelector allows neither suspend nor SidecarMode"
    if selector and spec.get("shutdownAfterJobFinishes"):
        yield "a job on an existing cluster must not end it"
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if queued and not (cluster and spec.get("shutdownAfterJobFinishes")):
        yield "a queued job needs a cluster of its own that ends with it"
    try:
        environment = yaml.safe_load(spec.get("runtimeEnvYAML") or "{}")
    except yaml.YAMLError:
        environment = None
    if not isinstance(environment, dict):
        yield "runtimeEnvYAML is no YAML mapping"
    texts = [
        str(spec.get(key, "")) for key in ("entrypoint", "runtimeEnvYAML", "entrypointResources")
    ]
    if any(map(_SHELL.search, [*texts, *map(str, (spec.get("metadata") or {}).values())])):
        yield "a shell would change a text of the job"
    if cluster:
        yield from _cluster(cluster)
        if queued and cluster.get("enableInTreeAutoscaling"):
            yield "Kueue takes no job with an autoscaler"
        if queued and len(cluster.get("workerGroupSpecs") or ()) > _MOST_GROUPS:
            yield f"Kueue takes at most {_MOST_GROUPS} groups of workers"


def _cluster(spec: dict[str, Any]) -> Iterator[str]:
    head, groups = spec.get("headGroupSpec") or {}, spec.get("workerGroupSpecs") or []
    for group in (head, *groups):
        name = group.get("groupName", "head")
        parameters = group.get("rayStartParams") or {}
        if "labels" in parameters:
            yield f"group {name}: labels belong into the field labels"
        if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(
            parameters
        ):
            yield f"group {name}: resources stand in rayStartParams too"
        pod = (group.get("template") or {}).get("spec") or {}
        if not pod.get("containers"):
            yield f"group {name} has no container"
        if spec.get("enableInTreeAutoscaling") and pod.get("restartPolicy", "Never") != "Never":
            yield f"group {name}: autoscaler v2 needs restartPolicy Never"
    if not spec.get("enableInTreeAutoscaling") and spec.get("autoscalerOptions"):
        yield "autoscalerOptions without enableInTreeAutoscaling"
    if (spec.get("authOptions") or {}).get("mode") == "token" and not spec.get("rayVersion"):
        yield "a token needs rayVersion"
    names = [group.get("groupName") for group in groups]
    if len(set(names)) < len(names):
        yield "two groups have the same name"
