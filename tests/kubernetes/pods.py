"""The pods that the objects of infra/k8s describe, as KubeRay and Kubernetes make them.

What an operator adds is written from KubeRay's documentation: the command of a node, the token, the job's id.
"""

from __future__ import annotations

import json
import shlex
from copy import deepcopy
from typing import Any

import yaml

TOKEN_KEY = "auth_token"
"""Key of Ray's token in the Secret that KubeRay makes."""


def ray_pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """One pod for the head, and one for each group of workers. The head's address is its pod's name."""
    name, spec = cluster["metadata"]["name"], cluster["spec"]
    head = f"{name}-head"
    pods = [_node(name, spec["headGroupSpec"], head, "ray start --head --port=6379", {})]
    for group in spec["workerGroupSpecs"]:
        pod_name = f"{name}-{group['groupName']}"
        pods.append(_node(name, group, pod_name, "ray start", {"address": f"{head}:6379"}))
    return pods


def submitter_pod(job: dict[str, Any]) -> dict[str, Any]:
    """The pod that submits a RayJob to its cluster, in K8sJobMode."""
    spec = job["spec"]
    cluster = spec["clusterSelector"]["ray.io/cluster"]
    job_id = spec.get("jobId") or job["metadata"]["name"]
    address = ["--address", f"http://{cluster}-head:8265"]
    environment = json.dumps(yaml.safe_load(spec["runtimeEnvYAML"]))
    submit = ["ray", "job", "submit", *address, "--submission-id", job_id, "--no-wait"]
    submit += ["--runtime-env-json", environment]
    submit += ["--entrypoint-resources", spec["entrypointResources"], "--"]
    follow = shlex.join(["ray", "job", "logs", *address, "--follow", job_id])
    command = f"{shlex.join(submit)} {spec['entrypoint']} ; {follow}"
    pod = _pod(f"{job['metadata']['name']}-submitter", spec["submitterPodTemplate"])
    pod["spec"]["containers"][0] |= {"command": ["/bin/bash", "-c", "--"], "args": [command]}
    _add_token(pod, cluster)
    return pod


def cron_pod(cron_job: dict[str, Any]) -> dict[str, Any]:
    """The pod of a CronJob's next job."""
    template = cron_job["spec"]["jobTemplate"]["spec"]["template"]
    return _pod(f"{cron_job['metadata']['name']}-1", template)


def _node(
    cluster: str, group: dict[str, Any], name: str, command: str, more: dict[str, str]
) -> dict[str, Any]:
    pod = _pod(name, group["template"])
    container = pod["spec"]["containers"][0]
    limits = container["resources"]["limits"]
    parameters = {"num-cpus": limits["cpu"], **group["rayStartParams"], **more}
    parameters |= {"block": "true", "metrics-export-port": "8080"}
    if "nvidia.com/gpu" in limits:
        parameters["num-gpus"] = str(limits["nvidia.com/gpu"])
    labels = ",".join(f"{key}={value}" for key, value in group.get("labels", {}).items())
    words = [
        f"--{key}" if value == "true" else f"--{key}={value}" for key, value in parameters.items()
    ]
    start = " ".join(["ulimit -n 65536;", command, *words, f"--labels={shlex.quote(labels)}"])
    container |= {"command": ["/bin/bash", "-c", "--"], "args": [start]}
    kind = "worker" if "groupName" in group else "head"
    pod["metadata"]["labels"] |= {"ray.io/cluster": cluster, "ray.io/node-type": kind}
    _add_token(pod, cluster)
    return pod


def _pod(name: str, template: dict[str, Any]) -> dict[str, Any]:
    copy = deepcopy(template)
    metadata = {**copy.get("metadata", {}), "name": name}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": copy["spec"]}


def _add_token(pod: dict[str, Any], cluster: str) -> None:
    reference = {"secretKeyRef": {"name": cluster, "key": TOKEN_KEY}}
    environment = pod["spec"]["containers"][0].setdefault("env", [])
    environment.append({"name": "RAY_AUTH_MODE", "value": "token"})
    environment.append({"name": "RAY_AUTH_TOKEN", "valueFrom": reference})
