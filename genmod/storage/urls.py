"""URLs, and the file systems behind them."""

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

CONNECT_S = 5.0
"""How long a connection may take to be made."""

TRIES = 5
"""How often botocore makes a request that fails, for those who use a file system themselves."""


def resolve(url: str) -> str:
    """A local path made absolute; a URL as it is. Trailing slashes go.

    Raises:
        StorageError: the URL holds credentials.
    """
    if "://" in url:
        _refuse_secrets(url)
        return url.rstrip("/") if not url.endswith("://") else url
    return str(Path(url).expanduser().absolute())


def filesystem(url: str, tries: int = TRIES) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL and the path on it.

    Args:
        url: or a local path.
        tries: of each request to an S3 store.

    Raises:
        StorageError: there is none for it, or the URL holds credentials.
    """
    options: dict[str, Any] = {}
    if "://" in url:
        _refuse_secrets(url)
        if is_s3(url):
            options = _s3_options(tries)
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        scheme = url.split("://", maxsplit=1)[0]
        raise StorageError(
            f"{url}: reading {scheme}:// needs a package that is not installed ({error}); "
            f"install genmod[{scheme}]"
        ) from error
    except ValueError as error:
        raise StorageError(f"{url}: {error}") from error
    if options:
        fs.retries = tries
    return cast(AbstractFileSystem, fs), str(path)


def is_s3(url: str) -> bool:
    """Whether it is a URL of an S3 store."""
    return url.startswith(("s3://", "s3a://"))


def join(url: str, *parts: str) -> str:
    """Put relative parts after a URL. An absolute part (path or URL) replaces what is before it."""
    for part in parts:
        absolute = "://" in part or posixpath.isabs(part)
        url = part if absolute else f"{url.rstrip('/')}/{part}"
    return url


def _s3_options(tries: int) -> dict[str, Any]:
    """Endpoint, region and credentials are not among them: botocore finds those in its standard chain."""
    return {
        "use_listings_cache": False,  # other processes write
        "config_kwargs": {
            "connect_timeout": CONNECT_S,
            "read_timeout": settings().read_timeout_s,
            "retries": {"mode": "standard", "total_max_attempts": tries},
        },
    }


def _refuse_secrets(url: str) -> None:
    """A URL goes into manifests, logs and tracking, so it must hold no credentials."""
    if _PASSWORD.search(url) or _SIGNATURE.search(url):
        scheme = url.split("://", maxsplit=1)[0]
        raise StorageError(
            f"a {scheme}:// URL holds credentials, which would end up in manifests and logs; take them out "
            "and give them in the standard way, e.g. AWS_PROFILE, AWS_ACCESS_KEY_ID or the node's role"
        )
