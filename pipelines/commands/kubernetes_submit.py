"""``genmod submit --kubernetes``: makes a RayJob of a stage, prints it, or applies it and follows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from cluster.kubectl import Kubectl, RayJobState
from genmod.errors import ConfigError
from genmod.terminal import print_line, print_text
from pipelines.commands.kubernetes_job import (
    JOB_LABEL,
    KubernetesTarget,
    attempt_of,
    job_name,
    make_objects,
    to_documents,
)
from pipelines.commands.submit import keeps_running, portable_recipe
from pipelines.recipe import recipe as config
from pipelines.recipe.recipe import Recipe

_DEFAULT = "genmod"
"""Default namespace, and default name of the RayCluster."""


@dataclass(frozen=True)
class KubernetesRequest:
    """A submission to Kubernetes, as on the command line."""

    stage: str
    recipe: str
    """A shipped recipe's name or a file."""
    assignments: Sequence[str] = ()
    models: Sequence[str] = ()
    namespace: str = _DEFAULT
    cluster: str = _DEFAULT
    image: str | None = None
    """Default: that of the cluster's head; needed to print."""
    attempt: int | None = None
    """Default: the one that runs, else the next one; 1 to print."""


def print_objects(request: KubernetesRequest) -> dict[str, Any]:
    """Print the objects of a submission as YAML. Asks no server."""
    recipe, options = _loaded(request)
    if request.image is None:
        raise ConfigError(
            "--print asks no cluster which image it has; name it with --image IMAGE, by digest"
        )
    target = _target(request, request.image, 1 if request.attempt is None else request.attempt)
    objects = make_objects(request.stage, recipe, options, target)
    print_text(to_documents(objects))
    return _metadata(request, recipe, objects) | {"status": "printed", "objects": objects}


def submit_job(request: KubernetesRequest, *, wait: bool = True) -> dict[str, Any]:
    """Apply the objects of a submission, and follow the job unless ``wait`` is false.

    Returns:
        The job's name, state and ``exit_code``, which come from its object and not from its log.
    """
    recipe, options = _loaded(request)
    _target(
        request, request.image or "unknown", 1 if request.attempt is None else request.attempt
    )  # before a server is asked
    kubectl = Kubectl(request.namespace)
    image = _check_cluster(kubectl.cluster(request.cluster), request)
    attempt = request.attempt or _next_attempt(kubectl, job_name(request.stage, recipe, options))
    objects = make_objects(request.stage, recipe, options, _target(request, image, attempt))
    kubectl.apply(to_documents(objects))
    result = _metadata(request, recipe, objects)
    name = result["job"]
    _say(
        f"submitted {name} in the namespace {request.namespace}; its log: kubectl logs --follow "
        f"--namespace {request.namespace} job/{name}"
    )
    if not wait:
        return result | {"status": "submitted"}
    try:
        state = kubectl.follow(name, _report)
    except KeyboardInterrupt as interrupt:
        stop = f"kubectl delete rayjob {name} --namespace {request.namespace}"
        raise keeps_running(name, stop, interrupt) from None
    status = (state.status or state.deployment).lower()
    return result | {"status": status, "exit_code": 0 if state.succeeded else 1}


def _loaded(request: KubernetesRequest) -> tuple[Recipe, list[str]]:
    """The recipe as it travels, and the options of the command."""
    recipe = config.load_recipe(request.recipe, request.assignments)
    place = f"in the namespace {request.namespace} of Kubernetes"
    resolved = portable_recipe(request.stage, recipe, place)
    for model in request.models:
        resolved.entry(model)
    return resolved, [part for model in request.models for part in ("--model", model)]


def _target(request: KubernetesRequest, image: str, attempt: int) -> KubernetesTarget:
    return KubernetesTarget(request.namespace, request.cluster, image, attempt)


def _check_cluster(spec: Any, request: KubernetesRequest) -> str:
    """The image for the submitter. ConfigError if the cluster has another Ray than this genmod."""
    ray = str(spec.get("rayVersion") or "")
    if ray and ray != version("ray"):
        raise ConfigError(
            f"the RayCluster {request.cluster} has Ray {ray}, but this genmod has {version('ray')}; submit "
            "from an installation with the cluster's versions"
        )
    containers = spec.get("headGroupSpec", {}).get("template", {}).get("spec", {}).get("containers")
    image = request.image or (containers[0].get("image") if containers else None)
    if not image:
        raise ConfigError(f"the RayCluster {request.cluster} names no image; give one with --image")
    return str(image)


def _next_attempt(kubectl: Kubectl, first: str) -> int:
    """Number of the attempt that runs, else of the next one."""
    states = {state.name: state for state in kubectl.jobs(f"{JOB_LABEL}={first}")}
    attempts = {number: states[name] for name in states if (number := attempt_of(name, first))}
    if not attempts:
        return 1
    newest = max(attempts)
    return newest + 1 if attempts[newest].ended else newest


def _metadata(request: KubernetesRequest, recipe: Recipe, objects: Any) -> dict[str, Any]:
    return {
        "stage": request.stage,
        "output": recipe.root,
        "fingerprint": None,
        "job": objects[-1]["metadata"]["name"],
    }


def _report(state: RayJobState) -> None:
    words = f"{state.deployment or 'waiting for KubeRay'} {state.status} {state.message}"
    _say(f"{state.name}: {' '.join(words.split())}")


def _say(text: str) -> None:
    print_line(f"genmod: {text}")
