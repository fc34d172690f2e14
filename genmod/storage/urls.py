"""URLs: which addresses genmod opens, and the file systems that serve them.

This is the one place that decides. A URL is a local path or ``SCHEME://...`` of :data:`SCHEMES`. Chains of
file systems (``a::b``), user names, passwords and secret parameters are refused.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Annotated, Any, cast
from urllib.parse import unquote

import fsspec
from fsspec.spec import AbstractFileSystem
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from genmod.errors import StorageError, did_you_mean, sanitize
from genmod.storage.local import LocalFiles
from genmod.storage.settings import settings

SCHEMES = ("file", "s3", "gs", "az", "http", "https", "memory")
"""Schemes of URLs. ``http`` and ``https`` are read only; ``memory`` belongs to one process."""

READ_ONLY_SCHEMES = ("http", "https")
"""Schemes of sources that are never written."""

_SCHEME = re.compile(r"([^/:]+)://")  # schemes of fsspec have other characters than those of URLs
_ONE_SLASH = re.compile(rf"({'|'.join(SCHEMES)}):(?!//)", re.IGNORECASE)
_SECRET_NAME = re.compile(
    r"(^|[^a-z])(sig|sas|auth|pass|pw|pwd|jwt)($|[^a-z])|signature|token(?!i[sz]e)|passw|secret|credential"
    r"|(api|access|account|shared|private)[-_]?key|authorization",
    re.IGNORECASE,
)
_IPV6 = re.compile(r"//\[[0-9A-Fa-f:.]+\](?=[:/]|$)")
_AUTHORITY = re.compile(r":(?=/+([^/?#]*))")
_PARAMETERS = re.compile(r"[?&;#]([^=&;#]*)=")

# The name of an error, no password.
SECRET_PROBLEM = "secret"  # nosec B105
"""Type of the validation error for a URL with credentials. Errors must not print its input."""

_MAX_PATH = 1024
"""Characters of a relative path."""

_CONNECT_S = 5.0
"""Connection timeout in seconds."""

REQUEST_ATTEMPTS = 5
"""Attempts per request that botocore makes for callers of :func:`filesystem`."""


def check_url(url: str) -> str:
    """Check that genmod may open a URL, and return it unchanged. Asks no store.

    Raises:
        StorageError: another scheme, a chain of file systems, credentials, or control characters. The message
            does not contain credentials.
    """
    if has_credentials(url):
        scheme = url.split(":", maxsplit=1)[0]
        raise StorageError(
            f"a {scheme}:// URL contains credentials, which would appear in manifests and logs; remove them "
            "and provide them in a standard way, e.g. AWS_PROFILE, AWS_ACCESS_KEY_ID or the node's role"
        )
    if not url or not url.isprintable():
        raise StorageError(
            f"{sanitize(url)!r} is not a URL or path: it is empty or contains control characters"
        )
    if "::" in _IPV6.sub("//host", url):
        raise StorageError(
            f"{url} chains file systems with '::', which is not supported; copy the data first"
        )
    if match := _ONE_SLASH.match(url):
        raise StorageError(f"{url} is not a URL; expected {match[1]}://...")
    scheme = scheme_of(url)
    if scheme == "file" and not url.startswith("file:///"):
        raise StorageError(f"{url} names a host, expected file:///PATH, or the path alone")
    if scheme and scheme not in SCHEMES:
        raise StorageError(
            f"{url}: the scheme {scheme}:// is not supported; {did_you_mean(scheme, SCHEMES)}"
        )
    return url


def scheme_of(url: str) -> str:
    """The scheme of a URL; empty for a local path.

    >>> scheme_of("s3://bucket/run"), scheme_of("/data")
    ('s3', '')
    """
    match = _SCHEME.match(url)
    return match[1] if match else ""


def has_credentials(url: str) -> bool:
    """Whether a URL contains a user name, a password or a secret parameter.

    >>> has_credentials("https://user@host/x"), has_credentials("https://host/x?sig=1&v=2")
    (True, True)
    """
    if "://" not in url and not _ONE_SLASH.match(url):
        return False
    text = url.removeprefix("file:///")  # which has no authority
    authorities = _AUTHORITY.findall(text) + re.findall(r"^[^:/]*:([^/?#]*)", text)
    names = _PARAMETERS.findall(unquote(url))
    return "@" in unquote("".join(authorities)) or any(_SECRET_NAME.search(n) for n in names)


_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
"""Names of nearly all files, so that manifests of many files are checked fast."""


def check_relative(path: str) -> str:
    """Check that a path from a manifest stays below its folder, and return it unchanged.

    Raises:
        StorageError: it is absolute, a URL, leads upwards, or contains characters with a meaning in URLs.
    """
    if _PLAIN_NAME.fullmatch(path):
        return path
    segments = path.split("/")
    is_plain = path.isprintable() and len(path) <= _MAX_PATH and not set(path) & set("\\?#%")
    if not is_plain or "::" in path or any(part in ("", ".", "..") for part in segments):
        raise StorageError(f"{sanitize(path[:80])!r} is not a relative path below its folder")
    if ":" in segments[0]:
        raise StorageError(f"{sanitize(path[:80])!r} is a URL, expected a relative path")
    return path


def join_below(url: str, path: str) -> str:
    """URL of a file that another file names, which must be below ``url``.

    >>> join_below("s3://bucket/data", "train-000000.tar")
    's3://bucket/data/train-000000.tar'

    Raises:
        StorageError: the path leads elsewhere, see :func:`check_relative`.
    """
    return f"{url.rstrip('/')}/{check_relative(path)}"


def _valid_url(url: str) -> str:
    try:
        return check_url(url)
    except StorageError as error:
        kind = SECRET_PROBLEM if has_credentials(url) else "url"
        raise PydanticCustomError(kind, "{reason}", {"reason": str(error)}) from None


def _valid_relative(path: str) -> str:
    try:
        return check_relative(path)
    except StorageError as error:
        raise PydanticCustomError("path", "{reason}", {"reason": str(error)}) from None


Url = Annotated[str, AfterValidator(_valid_url)]
"""Type of a configuration's field: a URL or local path that :func:`check_url` accepts."""

RelativePath = Annotated[str, AfterValidator(_valid_relative)]
"""Type of a manifest's field: a path that :func:`check_relative` accepts."""


def resolve(url: str) -> str:
    """An absolute path for a local path, a URL unchanged; without trailing slashes.

    >>> resolve("s3://bucket/run/")
    's3://bucket/run'

    Raises:
        StorageError: :func:`check_url` refuses the URL.
    """
    check_url(url)
    if "://" in url:
        return url.rstrip("/") if not url.endswith("://") else url
    return _absolute(url)


def _absolute(path: str) -> str:
    """A local path made absolute, with ``~`` for a home."""
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError:
        name = path.split("/", maxsplit=1)[0]
        raise StorageError(
            f"{sanitize(path)}: {sanitize(name)} is the home of no user of this machine; write ./{name} for "
            "a folder of that name"
        ) from None


def filesystem(url: str, attempts: int = REQUEST_ATTEMPTS) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL and the path on it.

    Args:
        url: or a local path.
        attempts: of each request to an S3 store.

    Raises:
        StorageError: :func:`check_url` refuses the URL, or its package is not installed.
    """
    check_url(url)
    if scheme_of(url) in ("", "file"):  # fsspec knows more URLs, e.g. data:...
        return LocalFiles(), _absolute(url.removeprefix("file://"))
    if is_http(url):
        from genmod.storage.web import WebFiles

        return cast(AbstractFileSystem, WebFiles()), url
    options = _s3_options(attempts) if is_s3(url) else {}
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
    return url.startswith("s3://")


def is_http(url: str) -> bool:
    """Whether a URL belongs to a web server, which is read only."""
    return scheme_of(url) in READ_ONLY_SCHEMES


def join(url: str, *parts: str) -> str:
    """Append relative parts to a URL, e.g. names that genmod generates; see also :func:`join_below`.

    >>> join("s3://bucket", "a", "b.tar")
    's3://bucket/a/b.tar'

    Raises:
        StorageError: a part is absolute, a URL, or leads upwards.
    """
    for part in parts:
        if "://" in part or posixpath.isabs(part) or ".." in part.split("/"):
            raise StorageError(f"{sanitize(part[:80])!r} is not a path below {url}")
        url = f"{url.rstrip('/')}/{part}"
    return url


def output_folder(root: str, folder: str) -> str:
    """URL of a folder that a recipe names: below its root, or an absolute path or URL.

    >>> output_folder("s3://bucket/run", "samples"), output_folder("s3://bucket/run", "/data")
    ('s3://bucket/run/samples', '/data')
    """
    if "://" in folder or posixpath.isabs(folder):
        return check_url(folder).rstrip("/")
    return join(root, folder)


def is_below(url: str, folder: str) -> bool:
    """Whether a URL is a folder or in it, by its text alone; nothing is opened.

    >>> is_below("s3://bucket/run/data", "s3://bucket/run"), is_below("s3://bucket/running", "s3://bucket/run")
    (True, False)

    Raises:
        StorageError: :func:`check_url` refuses one of them.
    """
    url, folder = (resolve(each.removeprefix("file://")) for each in (url, folder))
    start = folder if folder.endswith("/") else f"{folder}/"
    return ".." not in url.split("/") and (url == folder or url.startswith(start))


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
