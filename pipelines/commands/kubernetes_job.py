"""A stage as objects of Kubernetes: a ConfigMap with its recipe, and a RayJob of KubeRay on a RayCluster.

infra/k8s has that cluster. Nothing here asks a server.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from genmod.config import fingerprint
from genmod.errors import ConfigError, sanitize
from pipelines.recipe.recipe import Recipe

JOB_LABEL = "genmod/job"
"""Label of all attempts of a job; its value is the name of the first one."""

_USER = 10001
"""The user of genmod's images."""

_FOLDER = "/etc/genmod/job"
"""Where the submitter finds the recipe. Ray copies the folder to the driver."""

# A volume of the pod alone.
_TEMPORARY = "/tmp"  # nosec B108
"""The folder for temporary files of the pod, whose root is read only."""

_PLAIN = re.compile(r"[A-Za-z0-9@%+=:,./_-]+")
"""Words that no shell changes; KubeRay writes them into one."""


_WORD = re.compile(r"[A-Za-z/][A-Za-z0-9/._-]*[A-Za-z0-9/. -]")
"""Texts without quotes in YAML; parsers read no such text of two or more characters as a number."""


@dataclass(frozen=True)
class KubernetesTarget:
    """Where a job runs, and in which image. ConfigError for names that Kubernetes does not allow."""

    namespace: str
    """The cluster and its Secrets are there."""
    cluster: str
    """Name of a RayCluster."""
    image: str
    """Image with this version of genmod."""
    attempt: int = 1
    """Number of the attempt. A job that has ended runs again under another number."""

    def __post_init__(self) -> None:
        for key, (pattern, expected) in _FORMS.items():
            if not re.fullmatch(pattern, value := str(getattr(self, key))):
                raise ConfigError(f"--{key} is {sanitize(value)[:80]!r}, expected {expected}")


_FORMS = {
    "namespace": (
        r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?",
        "the name of a namespace: at most 63 of a-z, 0-9 and '-', not first or last",
    ),
    "cluster": (
        r"[a-z]([-a-z0-9]{0,51}[a-z0-9])?",
        "the name of a RayCluster: a letter, then at most 52 of a-z, 0-9 and '-'",
    ),
    "image": (
        r"[a-z0-9][A-Za-z0-9._:/@-]{0,254}",
        "an image, e.g. registry.example/genmod-runtime@sha256:DIGEST",
    ),
    "attempt": (r"[1-9][0-9]{0,3}", "a number from 1 to 9999"),
}
"""Field -> pattern, and the pattern in words."""


def job_name(stage: str, recipe: Recipe, options: Sequence[str]) -> str:
    """Name of the first attempt: the same stage, recipe and options have the same name everywhere."""
    return f"genmod-{stage}-{fingerprint(stage, recipe, list(options))[:12]}"


def attempt_name(name: str, attempt: int) -> str:
    """Name of an attempt: later ones get the suffix ``-2``, ``-3``, ..."""
    return name if attempt == 1 else f"{name}-{attempt}"


def attempt_of(name: str, first: str) -> int:
    """Number of the attempt with this name; 0 for another job."""
    if name == first:
        return 1
    head, _, number = name.rpartition("-")
    return int(number) if head == first and number.isdecimal() else 0


def make_objects(
    stage: str, recipe: Recipe, options: Sequence[str], target: KubernetesTarget
) -> list[dict[str, Any]]:
    """The ConfigMap and the RayJob. Equal inputs give equal objects.

    Args:
        stage: as on the command line.
        recipe: without paths of this machine.
        options: further words of the command, e.g. ``--model vae``.
        target: where it runs.

    Raises:
        ConfigError: an option has characters that a shell would change.
    """
    words = ["python", "-m", "pipelines", stage, "--recipe", "recipe.yaml", *options]
    for word in words:
        if not _PLAIN.fullmatch(word):
            raise ConfigError(
                f"{word!r} cannot be part of a job's command on Kubernetes; rename it"
            )
    text = recipe.to_yaml()
    digest = hashlib.sha256(text.encode()).hexdigest()
    first = job_name(stage, recipe, options)
    name = attempt_name(first, target.attempt)
    labels = {"app.kubernetes.io/name": "genmod"}
    config_name = f"genmod-recipe-{digest[:12]}"
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": config_name,
            "namespace": target.namespace,
            "labels": labels,
        },
        "immutable": True,
        "data": {"recipe.yaml": text},
    }
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": name,
            "namespace": target.namespace,
            "labels": {**labels, JOB_LABEL: first},
            "annotations": {
                "genmod/attempt": str(target.attempt),
                "genmod/recipe": f"sha256:{digest}",
                "genmod/root": recipe.root,
            },
        },
        "spec": {
            "clusterSelector": {"ray.io/cluster": target.cluster},
            "submissionMode": "K8sJobMode",
            "jobId": name,
            "backoffLimit": 0,
            "submitterConfig": {"backoffLimit": 2},
            "entrypoint": shlex.join(words),
            "entrypointResources": '{"driver": 1}',
            "runtimeEnvYAML": f"working_dir: {_FOLDER}\n",
            "submitterPodTemplate": {
                "metadata": {"labels": {**labels, "app.kubernetes.io/component": "submitter"}},
                "spec": _submitter(target.image, config_name),
            },
        },
    }
    return [config, job]


def to_documents(objects: Sequence[dict[str, Any]]) -> str:
    """Objects as YAML documents, for kubectl and for people."""
    texts = [yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=1000) for value in objects]
    return "---\n".join(texts)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that a YAML parser could read as something else; recipes are blocks."""

    def represent_text(self, text: str) -> yaml.Node:
        """The node of a text."""
        style = "|" if "\n" in text else None if _WORD.fullmatch(text) else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal parts in full, without anchors."""
        return True


_Dumper.add_representer(str, _Dumper.represent_text)


def _submitter(image: str, config: str) -> dict[str, Any]:
    """The pod that submits the job: no rights, no token of Kubernetes, a read-only root."""
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "submitter",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "envFrom": [{"configMapRef": {"name": "genmod-environment"}}],
                "resources": {
                    "requests": {"cpu": "200m", "memory": "512Mi", "ephemeral-storage": "128Mi"},
                    "limits": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "512Mi"},
                },
                "volumeMounts": [
                    {"name": "tmp", "mountPath": _TEMPORARY},
                    {"name": "recipe", "mountPath": _FOLDER, "readOnly": True},
                ],
            }
        ],
        "volumes": [
            {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
            {"name": "recipe", "configMap": {"name": config}},
        ],
    }
