"""How patient genmod is with remote stores, and the node's cache: the recipe's ``storage``.

Every process that reads or writes must agree, on every node, so the settings travel in one environment
variable. It holds no credentials.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic import Field, ValidationError

from genmod.config import Config
from genmod.errors import ConfigError

VARIABLE = "GENMOD_STORAGE"
"""Name of the environment variable: JSON of a :class:`StorageConfig`."""

FORWARDED_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
"""Standard variables that say where a store is, not who asks. Workers elsewhere are given them."""


class CacheConfig(Config):
    """Copies of remote tars on each node's own disk, shared by its processes."""

    folder: str
    """On a local disk of each node; made where it is not there."""
    size_bytes: int = Field(gt=0)
    """All copies together are never larger. What was used longest ago goes first, what is in use stays."""


class StorageConfig(Config):
    """The recipe's ``storage``. Not part of any result."""

    read_timeout_s: float = Field(default=15, gt=0)
    """How long a connection may be silent."""
    request_timeout_s: float = Field(default=60, gt=0)
    """How long one request may take; it moves 4 MiB at most when reading and 8 MiB when writing."""
    retry_timeout_s: float = Field(default=120, gt=0)
    """How long a request is begun anew, with growing pauses, before the store counts as lost."""
    cache: CacheConfig | None = None
    """Without it, tars are read from the store by ranges, or kept in memory where they are small."""


def settings() -> StorageConfig:
    """Of this process: what the environment says, else the defaults."""
    return _parse(os.environ.get(VARIABLE, "{}"))


def environment_of(config: StorageConfig) -> Mapping[str, str]:
    """What a process must find in its environment to use this configuration."""
    return {VARIABLE: config.model_dump_json(exclude_defaults=True)}


@lru_cache(maxsize=8)
def _parse(text: str) -> StorageConfig:
    try:
        return StorageConfig.model_validate_json(text)
    except ValidationError as error:
        fault: Any = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"]) or "the text"
        raise ConfigError(f"the variable {VARIABLE}: {where}: {fault['msg']}") from None
