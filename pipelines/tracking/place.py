"""Where runs are logged: what the recipe says, else MLflow's environment variables, else below the root."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from genmod import storage
from genmod.config import Config
from genmod.errors import ConfigError, sanitize
from genmod.storage.urls import SECRET_PROBLEM
from pipelines.tracking.webhook import WebhookConfig

ARTIFACTS = "mlartifacts"
"""Folder next to an embedded MLflow's database: copies that MLflow manages, not results of genmod."""

URI_VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
_CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")

_DEFAULT_EXPERIMENT = "genmod"
_SQLITE = "sqlite:///"
_NOT_IN_SQLITE = "?%\\"
"""Characters of a path with which MLflow opens another file or folder."""

_MAX_PREFIX = 191
"""Characters of a prefix; MLflow's registered names have at most 256, a model's name in a recipe 64."""

_PREFIX = re.compile(rf"[\w .@+-]{{1,{_MAX_PREFIX}}}")


class TrackingConfig(Config):
    """The recipe's ``tracking``: where runs are logged."""

    enabled: bool = True
    """Whether runs are logged to MLflow."""
    uri: storage.TrackingUri | None = None
    """URI of an MLflow server, or ``sqlite:///FILE`` with artifacts next to the file. The default is
    MLFLOW_TRACKING_URI of the environment, else ``mlflow.db`` below the root, which must then be a local
    folder."""
    experiment: storage.ExperimentName | None = None
    """Name of the MLflow experiment. The default is MLFLOW_EXPERIMENT_NAME of the environment, else
    ``genmod``."""
    prefix: storage.Title | None = None
    """Registered models are named PREFIX-NAME. The default prefix is the experiment's name; if that has
    characters that registered names cannot have, they become ``-`` and a digest of the name follows."""
    artifacts: storage.Url | None = None
    """URL below which an MLflow server may place artifacts, e.g. ``s3://bucket/mlflow``. Default: only the
    server itself, or the folder next to the file."""
    roots: tuple[storage.Url, ...] = ()
    """Folders besides the root in which the champion may be, e.g. roots of recipes with the same registry."""
    upload_bytes: int = Field(default=50_000_000, ge=0, le=1 << 50)
    """Of larger files MLflow gets the URL and the digest instead of a copy."""

    webhook: WebhookConfig | None = None
    """Who gets the outcomes of commands. Works without MLflow too."""

    @field_validator("prefix")
    @classmethod
    def _check_prefix(cls, prefix: str | None) -> str | None:
        if prefix is not None and not _PREFIX.fullmatch(prefix):
            raise ValueError(
                f"expected at most {_MAX_PREFIX} letters, digits, spaces, '_', '.', '@', '+' and '-': "
                "registered names have no '/'"
            )
        return prefix


@dataclass(frozen=True)
class TrackingPlace:
    """Where a command logs its runs."""

    uri: str
    """Empty if tracking is off."""
    folder: str
    """Folder of an embedded database's artifacts; empty for a server."""
    experiment: str
    prefix: str
    reason: str
    """Why it is there, in words."""

    @classmethod
    def of(cls, config: TrackingConfig, root: str) -> TrackingPlace:
        """The place that the recipe, the environment and the root determine.

        Raises:
            ConfigError: a variable has no valid value, or there is no URI and the root is not a local folder.
        """
        experiment, named_by = config.experiment, "tracking.experiment"
        if not config.enabled:
            name = experiment or _DEFAULT_EXPERIMENT
            return cls(
                "", "", name, config.prefix or valid_prefix(name), "tracking.enabled is false"
            )
        uri, reason = config.uri, "tracking.uri"
        if uri is None and (uri := _variable(URI_VARIABLE, storage.TrackingUri)) is not None:
            reason = URI_VARIABLE
        elif uri is not None and os.environ.get(URI_VARIABLE):
            reason = f"tracking.uri; {URI_VARIABLE} is not used"
        if experiment is None:
            named_by = EXPERIMENT_VARIABLE
            experiment = _variable(EXPERIMENT_VARIABLE, storage.ExperimentName)
        if experiment is None:
            experiment, named_by = _DEFAULT_EXPERIMENT, "the default"
        if uri is None:
            uri = _below(root)
            reason = f"below the root, because tracking.uri and {URI_VARIABLE} are not set"
        elif reason == URI_VARIABLE and uri.startswith(_SQLITE):
            uri = f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).absolute()}"
        file = database_of(uri)
        folder = str(Path(file).absolute().parent / ARTIFACTS) if file else ""
        prefix = config.prefix or valid_prefix(experiment)
        return cls(uri, folder, experiment, prefix, f"{reason}; the experiment by {named_by}")

    @property
    def exists(self) -> bool:
        """Whether there may be something to read: tracking is on, and an embedded database was made."""
        file = database_of(self.uri)
        return bool(self.uri) and (not file or os.path.exists(file))

    def line(self) -> str:
        """Where runs are logged and why, in one line."""
        if not self.uri:
            return f"MLflow: runs are not logged ({self.reason})"
        return (
            f"MLflow: runs are logged to {self.uri}, experiment {self.experiment} ({self.reason})"
        )


def database_of(uri: str) -> str:
    """The file of an embedded database; empty for a server."""
    return uri.removeprefix(_SQLITE) if uri.startswith(_SQLITE) else ""


def valid_prefix(experiment: str) -> str:
    """An experiment's name as the start of registered names, which have neither ``/`` nor ``:`` nor quotes.

    >>> valid_prefix("digits"), valid_prefix("/Shared/digits"), valid_prefix("Shared:digits")
    ('digits', 'Shared-digits-dacc6770', 'Shared-digits-070fcce0')
    """
    if _PREFIX.fullmatch(experiment):
        return experiment
    digest = hashlib.sha256(experiment.encode()).hexdigest()[:8]
    text = re.sub(r"[^\w.@+-]+", "-", experiment).strip("-.")
    return f"{text[: _MAX_PREFIX - len(digest) - 1]}-{digest}".lstrip("-")


def portable(config: TrackingConfig) -> tuple[TrackingConfig, list[str]]:
    """The settings for a command on another machine, with those of this environment, and what to say of them.

    A database on this machine is not named there, and credentials never travel.

    Raises:
        ConfigError: a variable has no valid value.
    """
    if not config.enabled:
        return config, []
    lines: list[str] = []
    changes: dict[str, Any] = {}
    uri = _variable(URI_VARIABLE, storage.TrackingUri) if config.uri is None else None
    if uri is not None and database_of(uri):
        lines.append(
            f"{URI_VARIABLE}={uri} is a file of this machine, so the job does not use it; set "
            "tracking.uri to a server that the cluster reaches"
        )
    elif uri is not None:
        changes["uri"] = uri
        lines.append(f"MLflow: the job logs its runs to {uri} ({URI_VARIABLE})")
    if config.experiment is None:
        name = _variable(EXPERIMENT_VARIABLE, storage.ExperimentName)
        if name is not None:
            changes["experiment"] = name
            lines.append(f"MLflow: the job's experiment is {name} ({EXPERIMENT_VARIABLE})")
    server = not database_of(changes.get("uri") or config.uri or _SQLITE)
    if server and (names := [name for name in _CREDENTIALS if os.environ.get(name)]):
        lines.append(f"{' and '.join(names)} are not forwarded; set them on the cluster's nodes")
    return config.model_copy(update=changes), lines


def _variable(name: str, schema: Any) -> str | None:
    """An environment variable's valid value; None if it is not set or empty."""
    value = os.environ.get(name)
    if not value:
        return None
    try:
        return TypeAdapter(schema).validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        shown = "" if problem["type"] == SECRET_PROBLEM else f"={sanitize(value[:200])}"
        key = "uri" if name == URI_VARIABLE else "experiment"
        raise ConfigError(
            f"the environment variable {name}{shown}: {problem['msg']}; correct or unset it, or set "
            f"tracking.{key} or tracking.enabled=false"
        ) from None


def _below(root: str) -> str:
    """The URI of the database below a root."""
    if "://" in root and not root.startswith("file://"):
        raise ConfigError(
            f"tracking.uri is not set and the root {root} is not a local folder; set an MLflow server "
            "with --set tracking.uri=http://HOST:PORT, or turn tracking off with "
            "--set tracking.enabled=false"
        )
    folder = root.removeprefix("file://")
    if wrong := sorted(set(folder) & set(_NOT_IN_SQLITE)):
        raise ConfigError(
            f"the root {root} contains {' and '.join(wrong)}, with which MLflow would look for its database "
            "in another folder; choose another root, set tracking.uri, or set tracking.enabled=false"
        )
    return f"{_SQLITE}{folder}/mlflow.db"
