"""Plays a pod with podman: its security context, variables, files and limits; its command is a probe."""

from __future__ import annotations

import base64
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

IMAGE_VARIABLE = "GENMOD_PLAY_IMAGE"
"""Environment variable with an image that has bash; by default that of infra/images or its base."""

KEYS = {"genmod": "auth_token", "genmod-store": "credentials"}
"""Secret -> its key."""

_IMAGES = ("localhost/genmod-runtime:cpu", "localhost/genmod-base")
_TIME_LIMIT_S = 300

PROBE = """\
echo user $(id -u):$(id -g)
touch /tmp/file && echo writes /tmp
touch /file 2>/dev/null || echo root is read only
grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status
for folder in /etc/genmod/job /run/secrets/*; do
  for file in "$folder"/*; do [ ! -f "$file" ] || echo file "$file"; done
done
cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null | sed 's/^/memory /'
env | sed 's/^/variable /'
"""
"""What a played pod prints."""


def reason_not_to_play() -> str:
    """Why this machine plays no pods; empty if it does."""
    if os.geteuid() or not shutil.which("podman") or not shutil.which("runc"):
        return "needs root, podman and runc (Debian: podman runc catatonit)"
    if not _image():
        return f"needs an image: build genmod-runtime, or name one with bash in {IMAGE_VARIABLE}"
    return ""


def play(pod: dict[str, Any], objects: list[dict[str, Any]], name: str, folder: Path) -> list[str]:
    """The lines that the probe prints in a pod.

    Args:
        pod: of tests.kubernetes.pods.
        objects: with the ConfigMaps that it uses.
        name: of the pod here; secrets get names that start with it.
        folder: for files of podman; empty.
    """
    pod = deepcopy(pod)
    spec, container = pod["spec"], pod["spec"]["containers"][0]
    pod["metadata"]["name"] = name
    spec["containers"] = [container]
    container |= {"image": _image(), "command": ["/bin/bash", "-c", "--"], "args": [PROBE]}
    container["imagePullPolicy"] = "Never"
    container.pop("ports", None)
    for amounts in container["resources"].values():
        amounts.pop("nvidia.com/gpu", None)
    environment = _environment(folder)
    with _secrets(pod, name, environment) as secrets:
        maps = deepcopy([value for value in objects if value["kind"] == "ConfigMap"])
        for volume in spec["volumes"]:  # podman keeps a volume of the ConfigMap's name
            old = volume.get("configMap", {}).get("name")
            found = [value for value in maps if value["metadata"]["name"] == old]
            for value in found[:1]:
                value["metadata"]["name"] = volume["configMap"]["name"] = f"{name}-{old}"
        documents = [json.dumps(value) for value in (*maps, *secrets, pod)]
        (folder / "pod.yaml").write_text("\n---\n".join(documents))
        try:
            _podman(["play", "kube", "--network=none", str(folder / "pod.yaml")], environment)
            container_name = f"{name}-{container['name']}"
            _podman(["wait", container_name], environment)
            return _podman(["logs", container_name], environment).splitlines()
        finally:
            _podman(["pod", "rm", "--force", "--ignore", name], environment)
            volumes = _podman(["volume", "ls", "--quiet"], environment).split()
            for volume in volumes:
                if volume.startswith(f"{name}-"):
                    _podman(["volume", "rm", volume], environment)


@contextmanager
def _secrets(
    pod: dict[str, Any], name: str, environment: dict[str, str]
) -> Iterator[list[dict[str, Any]]]:
    """Secrets that the pod refers to, under names of this pod; podman keeps them, so they are removed."""
    made: list[str] = []
    documents: list[dict[str, Any]] = []
    text = base64.b64encode(b"secret of a test").decode()
    try:
        for variable in pod["spec"]["containers"][0].get("env", ()):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference:
                reference["name"] = f"{name}-{reference['name']}-variable"
                made.append(reference["name"])
                # podman 4.3 reads the data alone here, and a whole Secret for a volume
                data = json.dumps({reference["key"]: text})
                _podman(["secret", "create", made[-1], "-"], environment, data)
        for volume in pod["spec"].get("volumes", ()):
            if "secret" in volume:
                secret = volume["secret"]
                data = {KEYS[secret["secretName"]]: text}
                secret["secretName"] = f"{name}-{secret['secretName']}"
                secret["optional"] = False  # podman 4.3 ends with a panic where it is absent
                made.append(secret["secretName"])
                metadata = {"name": made[-1]}
                documents.append(
                    {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}
                )
        yield documents
    finally:
        for secret in made:
            subprocess.run(
                ["podman", "secret", "rm", secret],
                env=environment,
                capture_output=True,
                check=False,
            )


def _image() -> str:
    wanted = os.environ.get(IMAGE_VARIABLE)
    names = subprocess.run(
        ["podman", "images", "--format={{.Repository}}:{{.Tag}}"],
        capture_output=True, text=True, check=False, timeout=_TIME_LIMIT_S,
    ).stdout.split()  # fmt: skip
    found = [x for start in _IMAGES for x in names if x.startswith(start) and "<none>" not in x]
    return wanted or next(iter(found), "")


def _environment(folder: Path) -> dict[str, str]:
    """podman's settings: runc, and limits below those of this process, which it must not exceed."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    few = [min(x, most) if x > 0 else most for x, most in ((files, 8192), (processes, 8192))]
    limits = [f"nofile={few[0]}:{few[0]}", f"nproc={few[1]}:{few[1]}"]
    (folder / "containers.conf").write_text(
        f"[containers]\ndefault_ulimits = {json.dumps(limits)}\n"
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
    )
    return os.environ | {"CONTAINERS_CONF": str(folder / "containers.conf")}


def _podman(words: list[str], environment: dict[str, str], text: str | None = None) -> str:
    done = subprocess.run(
        ["podman", *words], env=environment, input=text,
        capture_output=True, text=True, check=False, timeout=_TIME_LIMIT_S,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"podman {words[0]}: {done.stderr.strip()[-2000:]}")
    return done.stdout
