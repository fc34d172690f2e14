"""URLs, and the file systems that serve them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, cast

import fsspec
from fsspec.spec import AbstractFileSystem

from genmod.errors import StorageError
from genmod.storage.settings import settings

_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")
_SIGNATURE = re.compile(r"[?&](x-amz-signature|x-goog-signature|signature|sig)=", re.IGNORECASE)

_CONNECT_S = 5.0
"""Connection timeout in seconds."""

_ATTEMPTS = 5
"""Attempts per request that botocore makes for callers of :func:`filesystem`."""


def resolve(url: str) -> str:
    """An absolute path for a local path, a URL unchanged; without trailing slashes.

    >>> resolve("s3://bucket/run/")
    's3://bucket/run'

    Raises:
        StorageError: the URL contains credentials.
    """
    if "://" in url:
        _refuse_secrets(url)
        return url.rstrip("/") if not url.endswith("://") else url
    return str(Path(url).expanduser().absolute())


def filesystem(url: str, attempts: int = _ATTEMPTS) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL and the path on it.

    Args:
        url: or a local path.
        attempts: of each request to an S3 store.

    Raises:
        StorageError: no file system serves the URL, or it contains credentials.
    """
    options: dict[str, Any] = {}
    if "://" in url:
        _refuse_secrets(url)
        if is_s3(url):
            options = _s3_options(attempts)
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise StorageError(
            f"{url}: a package that this URL needs is not installed: {error}"
        ) from error
    except ValueError as error:
        raise StorageError(f"{url}: {error}") from error
    if options:
        fs.retries = attempts
    return cast(AbstractFileSystem, fs), str(path)


def is_s3(url: str) -> bool:
    """Whether a URL belongs to an S3 store."""
    return url.startswith(("s3://", "s3a://"))


def join(url: str, *parts: str) -> str:
    """Append relative parts to a URL. An absolute part (path or URL) replaces everything before it.

    >>> join("s3://bucket", "a", "b.tar")
    's3://bucket/a/b.tar'
    >>> join("s3://bucket", "/data/b.tar")
    '/data/b.tar'
    """
    for part in parts:
        absolute = "://" in part or posixpath.isabs(part)
        url = part if absolute else f"{url.rstrip('/')}/{part}"
    return url


def _s3_options(attempts: int) -> dict[str, Any]:
    """Options without endpoint, region and credentials, which botocore finds in its standard chain."""
    return {
        "use_listings_cache": False,  # other processes write
        "config_kwargs": {
            "connect_timeout": _CONNECT_S,
            "read_timeout": settings().read_timeout_s,
            "retries": {"mode": "standard", "total_max_attempts": attempts},
        },
    }


def _refuse_secrets(url: str) -> None:
    """Refuse URLs with credentials, because URLs appear in manifests, logs and tracking."""
    if _PASSWORD.search(url) or _SIGNATURE.search(url):
        scheme = url.split("://", maxsplit=1)[0]
        raise StorageError(
            f"a {scheme}:// URL contains credentials, which would appear in manifests and logs; remove them "
            "and provide them in a standard way, e.g. AWS_PROFILE, AWS_ACCESS_KEY_ID or the node's role"
        )
