"""Timeouts of remote storage and the node's file cache: the recipe's ``storage``.

All processes on all nodes must use the same settings. A command calls :func:`configure`; its workers receive
them in one environment variable, which contains no credentials.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from genmod.config import Config
from genmod.errors import ConfigError

SETTINGS_VARIABLE = "GENMOD_STORAGE"
"""Environment variable with the JSON of a :class:`StorageConfig`."""

FORWARDED_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
"""Standard variables that say where a store is, but not who uses it. Workers on other nodes receive them."""


def _check_local(folder: str) -> str:
    if ":/" in folder or "::" in folder or not folder.isprintable():
        # This type of error does not print the text, which may be a URL with a password.
        raise PydanticCustomError("secret", "expected a local folder, without a scheme")
    return folder


LocalFolder = Annotated[str, Field(min_length=1), AfterValidator(_check_local)]
"""Type of a field: a path on this machine."""


class CacheConfig(Config):
    """Copies of remote tars on each node's disk, shared by the node's processes."""

    folder: LocalFolder
    """On a local disk of each node; created if missing. The cache keeps to a subfolder ``genmod-cache``."""
    size_bytes: int = Field(gt=0, le=1 << 60)
    """Upper limit for all copies together. Least recently used files are evicted first; files in use stay."""


class StorageConfig(Config):
    """The recipe's ``storage``. Does not change any result."""

    read_timeout_s: float = Field(default=15, gt=0, le=1e7)
    """Longest silence of a connection, in seconds."""
    request_timeout_s: float = Field(default=60, gt=0, le=1e7)
    """Longest time of one request, in seconds; it reads at most 4 MiB or writes at most 8 MiB."""
    retry_timeout_s: float = Field(default=120, gt=0, le=1e7)
    """How long a request is retried with backoff, in seconds, before the command fails."""
    cache: CacheConfig | None = None
    """None: tars are read by byte range, or kept in memory if they are small."""
    check_digests: bool = True
    """Compare indexes and tars with their manifest's digests when a process first reads them. If ``false``,
    the manifests of what is made say ``"inputs_checked": false``."""


class _Process:
    """State of this process."""

    config: StorageConfig | None = None


def configure(config: StorageConfig | None) -> None:
    """Use these settings in this process from now on; None: those of the environment."""
    _Process.config = config


def settings() -> StorageConfig:
    """This process's settings: those of :func:`configure`, else of the environment, else the defaults."""
    return _Process.config or _parse(os.environ.get(SETTINGS_VARIABLE, "{}"))


def environment_of(config: StorageConfig) -> Mapping[str, str]:
    """Environment variables with which a new process uses this configuration."""
    return {SETTINGS_VARIABLE: config.model_dump_json(exclude_defaults=True)}


def settings_environment() -> Mapping[str, str]:
    """Environment variables with which a worker uses the settings of this process; empty for the defaults."""
    if _Process.config is not None:
        return environment_of(_Process.config)
    return {name: os.environ[name] for name in (SETTINGS_VARIABLE,) if name in os.environ}


@lru_cache(maxsize=8)
def _parse(text: str) -> StorageConfig:
    try:
        return StorageConfig.model_validate_json(text)
    except ValidationError as error:
        problem: Any = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the text"
        raise ConfigError(
            f"environment variable {SETTINGS_VARIABLE}: {where}: {problem['msg']}; correct or unset it"
        ) from None
