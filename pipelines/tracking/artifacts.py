"""Where artifacts of runs go. An MLflow server names the address of each run's artifacts; this checks it.

A server could name a folder of this machine, a bucket of another user or a server that collects files. So
artifacts go to the server itself, to the folder next to an embedded database, or to what the recipe names.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from genmod import storage
from genmod.errors import ConfigError, sanitize

_SERVED = "mlflow-artifacts"
"""Scheme of artifacts that the tracking server itself keeps."""

_MAX_SHOWN = 200
"""Characters of a server's address that an error shows."""


@dataclass(frozen=True)
class ArtifactPlace:
    """Where artifacts may go."""

    tracking_uri: str
    folder: str
    """Local folder of an embedded database; empty for a server."""
    allowed: str | None
    """URL that the recipe names: artifacts may be below it too."""

    def repository(self, uri: str) -> Any:
        """MLflow's writer of artifacts for the address of a run's artifacts.

        Raises:
            ConfigError: the address is not one to which artifacts may go.
        """
        uri = self.check(uri)
        scheme = storage.scheme_of(uri)
        if scheme == "file":
            from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

            return LocalArtifactRepository(uri)
        if scheme in ("http", "https"):
            from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

            return HttpArtifactRepository(uri, tracking_uri=self.tracking_uri)
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(uri, tracking_uri=self.tracking_uri)

    def check(self, uri: str) -> str:
        """The address to write to, ``http``, ``file`` or the scheme of ``allowed``; ConfigError otherwise."""
        if not _is_plain(uri):
            raise self._refusal(uri)
        if self._is_local(uri):
            return uri
        if self.allowed is not None and _is_below(uri, self.allowed):
            return _as_url(uri)
        if not self.folder and (served := self._on_the_server(uri)):
            return served
        raise self._refusal(uri)

    def _is_local(self, uri: str) -> bool:
        """Whether the address is in the folder of an embedded database, symbolic links followed."""
        if not self.folder or not uri.startswith("file:///"):
            return False
        path = os.path.realpath(unquote(uri.removeprefix("file://")))
        return Path(path).is_relative_to(os.path.realpath(self.folder))

    def _on_the_server(self, uri: str) -> str:
        """The HTTP address of artifacts that the tracking server keeps; empty if it is not its own."""
        server, parts = urlsplit(self.tracking_uri), urlsplit(uri)
        if parts.scheme == _SERVED and parts.netloc in ("", server.netloc):
            from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

            return str(MlflowArtifactsRepository.resolve_uri(uri, self.tracking_uri))
        same = (parts.scheme, parts.netloc) == (server.scheme, server.netloc)
        return uri if same and server.scheme in ("http", "https") else ""

    def _refusal(self, uri: str) -> ConfigError:
        shown = sanitize(uri[:_MAX_SHOWN]) or "an empty address"
        if storage.has_credentials(uri):
            shown = "a URL with credentials"
        return ConfigError(
            f"MLflow at {self.tracking_uri} wants artifacts at {shown}, which is not its own; start the "
            "server with --serve-artifacts, use another tracking.experiment, or, if you trust that place, "
            "set tracking.artifacts to a URL above it"
        )


def _is_plain(uri: str) -> bool:
    """Whether an address has no credentials, parameters, chains or steps upwards."""
    decoded = unquote(uri)
    if (
        not decoded.isprintable()
        or "::" in decoded
        or "\\" in decoded
        or storage.has_credentials(uri)
    ):
        return False
    parts = urlsplit(uri)
    return not (parts.query or parts.fragment or ".." in decoded.split("/"))


def _is_below(uri: str, allowed: str) -> bool:
    """Whether an address is at or below a URL that the recipe names."""
    return storage.is_below(_as_url(uri), _as_url(allowed))


def _as_url(uri: str) -> str:
    """A local path as a ``file`` URL."""
    return uri if ":" in uri else Path(uri).absolute().as_uri()
