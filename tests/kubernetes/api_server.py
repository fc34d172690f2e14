"""A small API server for kubectl: discovery, get, list, server-side apply. It plays KubeRay's part in states.

It is no Kubernetes: it checks nothing. It shows what kubectl is asked to do, and gives prepared answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

_RESOURCES = {
    "/api/v1": {"configmaps": "ConfigMap"},
    "/apis/ray.io/v1": {"rayjobs": "RayJob", "rayclusters": "RayCluster"},
}
_DISCOVERY = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [
            {
                "name": "ray.io",
                "versions": [{"groupVersion": "ray.io/v1", "version": "v1"}],
                "preferredVersion": {"groupVersion": "ray.io/v1", "version": "v1"},
            }
        ],
    },
    "/openapi/v3": {
        "paths": {
            root.lstrip("/"): {"serverRelativeURL": f"/openapi/v3{root}"} for root in _RESOURCES
        }
    },
    "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
}


class Server:
    """The state of the server: objects by path, and what it was asked."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.applied: list[str] = []
        self.states: dict[str, list[dict[str, str]]] = {}
        """Name of a job -> its next states; the last one stays."""
        self.forbidden = False
        self.failures = 0
        """Answers to come that are errors of the server."""
        self.url = ""

    def put(self, value: dict[str, Any]) -> None:
        """Add an object, as another client would."""
        self.objects[_path(value)] = value

    def answer(self, method: str, url: str, body: bytes) -> tuple[int, Any]:
        """Status and body of the answer to a request."""
        parts = urlsplit(url)
        path = parts.path.rstrip("/")
        if path in _DISCOVERY:
            return 200, _DISCOVERY[path]
        if path in _RESOURCES:
            return 200, _resources(path)
        if path.startswith("/openapi/v3/"):
            return 200, _openapi(path.removeprefix("/openapi/v3"))
        if self.failures:
            self.failures -= 1
            return 503, _status(503, "ServiceUnavailable", "the server is busy")
        if self.forbidden:
            return 403, _status(403, "Forbidden", f"{path} is forbidden: no rights")
        if method == "PATCH":
            self.objects[path] = self.objects.get(path, {}) | yaml.safe_load(body)
            self.applied.append(path.rpartition("/")[2])
            return 200, self.objects[path]
        if path.endswith(("/rayjobs", "/rayclusters", "/configmaps")):
            wanted = dict(x.split("=") for x in parse_qs(parts.query).get("labelSelector", ()))
            items = [self._shown(key) for key in sorted(self.objects) if key.startswith(f"{path}/")]
            items = [x for x in items if wanted.items() <= x["metadata"].get("labels", {}).items()]
            return 200, {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}
        if path.count("/") == 4:
            return 200, {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "genmod"}}
        if path not in self.objects:
            name = path.rpartition("/")[2]
            return 404, _status(404, "NotFound", f'"{name}" not found')
        return 200, self._shown(path, advance=True)

    def _shown(self, path: str, advance: bool = False) -> dict[str, Any]:
        states = self.states.get(path.rpartition("/")[2])
        if not states:
            return self.objects[path]
        status = states.pop(0) if advance and len(states) > 1 else states[0]
        return self.objects[path] | {"status": status}


@contextmanager
def api_server() -> Iterator[Server]:
    """A server on a free port of 127.0.0.1."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            status, value = state.answer(self.command, self.path, self.rfile.read(length))
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PATCH = do_POST = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def _path(value: dict[str, Any]) -> str:
    for root, kinds in _RESOURCES.items():
        for plural, kind in kinds.items():
            if kind == value["kind"]:
                metadata = value["metadata"]
                return f"{root}/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}"
    raise KeyError(value["kind"])


def _resources(path: str) -> dict[str, Any]:
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": path.removeprefix("/apis/").removeprefix("/api/"),
        "resources": [
            {
                "name": plural,
                "singularName": kind.lower(),
                "namespaced": True,
                "kind": kind,
                "verbs": ["get", "list", "patch", "create"],
            }
            for plural, kind in _RESOURCES[path].items()
        ],
    }


def _openapi(root: str) -> dict[str, Any]:
    """That the server validates fields itself, which kubectl asks for before it applies anything."""
    group, _, version = root.removeprefix("/apis/").removeprefix("/api/").rpartition("/")
    return {
        "openapi": "3.0.0",
        "paths": {
            f"{root}/{plural}": {
                "patch": {
                    "parameters": [{"name": "fieldValidation", "in": "query"}],
                    "x-kubernetes-group-version-kind": {
                        "group": group,
                        "version": version,
                        "kind": kind,
                    },
                }
            }
            for plural, kind in _RESOURCES[root].items()
        },
    }


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    return {
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": message, "reason": reason, "code": code,
    }  # fmt: skip
