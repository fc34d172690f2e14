"""Reads genmod's values from the metrics ports of Ray's nodes, as Prometheus does. Needs no token."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.private_folder import PREFIX
from genmod.errors import ConfigError, sanitize

_TIMEOUT_S = 5.0
"""Of one request, in seconds."""

_MAX_BYTES = 32 << 20
"""Of one node's answer; a longer one is cut."""

_MAX_NODES = 10_000

_LINE = re.compile(
    r"(ray_(?:genmod_\w{1,80}|node_mem_used|node_mem_total)){([^}]{0,4000})} (\S{1,40})"
)
_LABEL = re.compile(r'(\w{1,60})="((?:[^"\\]|\\.){0,300})"')

_PORT_FILES = "session_2*/metrics_export_port_*"
"""Files in the folder of a Ray on this machine, each with the metrics port of one node."""


@dataclass(frozen=True)
class Sample:
    """One value at one node."""

    name: str
    """Without ``ray_`` and ``_total``."""
    stage: str
    model: str
    node: str
    """Address of the node whose memory it is."""
    value: float
    """Finite."""


def local_endpoints() -> list[str]:
    """URLs of the metrics of this user's Ray nodes on this machine, running or not any more."""
    parents = {os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), tempfile.gettempdir()}
    found: set[str] = set()
    for parent in map(Path, parents):
        for folder in (*(each / "r" for each in parent.glob(f"{PREFIX}*")), parent / "ray"):
            for file in folder.glob(_PORT_FILES):
                with suppress(OSError, ValueError):
                    if file.stat().st_uid == os.getuid() and file.stat().st_size <= 10:
                        found.add(f"http://127.0.0.1:{int(file.read_text())}/metrics")
    return sorted(found)


def cluster_endpoints() -> list[str]:
    """URLs of the metrics of all nodes. Ray is connected."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["MetricsExportPort"]]
    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in nodes[:_MAX_NODES]
    ]


def read_samples(endpoints: Collection[str]) -> tuple[list[Sample], list[str]]:
    """Values of all nodes that answer, and the URLs of the others."""
    if not endpoints:
        return [], []
    with ThreadPoolExecutor(min(32, len(endpoints))) as pool:
        answers = dict(zip(endpoints, pool.map(_read, endpoints), strict=True))
    silent = [url for url, text in answers.items() if text is None]
    return [s for text in answers.values() if text is not None for s in parse_samples(text)], silent


def parse_samples(text: str) -> Iterable[Sample]:
    """Our values and the nodes' memory in a text of Prometheus' format; other lines are skipped."""
    for line in text.splitlines():
        if (found := _LINE.fullmatch(line)) is None:
            continue
        with suppress(ValueError):
            if math.isfinite(value := float(found[3])):
                labels = dict(_LABEL.findall(found[2]))
                name = found[1].removeprefix("ray_")
                if name != "node_mem_total":
                    name = name.removesuffix("_total")
                stage, model, node = (
                    sanitize(labels.get(key, "")) for key in ("stage", "model", "ip")
                )
                yield Sample(name, stage, model, node, value)


def check_endpoint(url: str) -> str:
    """The URL of a node's metrics, with the usual path if it has none. ConfigError for another URL."""
    found = re.fullmatch(r"(http://[A-Za-z0-9.:\[\]-]{1,255}:\d{1,5})(/metrics)?/?", url)
    if found is None:
        raise ConfigError(
            f"{sanitize(url)} is not the address of a node's metrics; expected http://HOST:PORT"
        )
    return f"{found[1]}/metrics"


def _read(url: str) -> str | None:
    """The answer of a node, or None if there is none."""
    import requests  # here, because it takes a part of a second

    try:
        with requests.get(url, timeout=_TIMEOUT_S, allow_redirects=False, stream=True) as answer:
            if answer.status_code != 200:
                return None
            return answer.raw.read(_MAX_BYTES, decode_content=True).decode(errors="replace")
    except (requests.RequestException, OSError, ValueError):
        return None
