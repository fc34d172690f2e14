"""Types of configuration fields whose text is an address, a folder or a name.

Every text field of a recipe has one of these types, or is listed as free text by a test. None accepts
control characters or credentials, so recipes can be printed, tracked and written to manifests.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from genmod.errors import StorageError, sanitize
from genmod.storage.urls import (
    READ_ONLY_SCHEMES,
    SECRET_PROBLEM,
    check_url,
    has_credentials,
    scheme_of,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_TITLE = re.compile(r"[\w/][\w ./@+-]{0,199}")
_EXPERIMENT = re.compile(r"[\w/][\w ./@+:'(),&-]{0,199}")
_HOST = r"(\[[0-9A-Fa-f:.]{2,64}\]|[A-Za-z0-9_.-]{1,253})"
_CLUSTER = re.compile(rf"(ray://)?{_HOST}(:\d{{1,5}})?")
_SERVER = re.compile(rf"https?://{_HOST}(:\d{{1,5}})?(/[\w./~-]*)?")
_WEBHOOK = re.compile(rf"https?://{_HOST}(:\d{{1,5}})?(/[\w./~-]{{0,500}})?", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SQLITE = re.compile(r"sqlite:///(/[^?%;\\]+|[^?#:;%\\]+)")


def _check_name(text: str) -> str:
    """Check that a text is one segment of a path: letters, digits, ``_``, ``.`` and ``-``."""
    if not _NAME.fullmatch(text):
        raise ValueError("expected a name of at most 64 letters, digits, '_', '.' and '-'")
    return text


def _check_folder(text: str) -> str:
    """Check that a text is a name below the root, or an absolute path or URL that can be written."""
    check_url(text)
    if "/" not in text:
        return _check_name(text)
    if ".." in text.split("/") or not (scheme_of(text) or posixpath.isabs(text)):
        raise ValueError("expected a name below the root, or an absolute path or URL without '..'")
    return _check_writable_url(text)


def _check_writable_url(text: str) -> str:
    """Check that a text is a URL or path of a store that can be written."""
    check_url(text)
    if scheme_of(text) in READ_ONLY_SCHEMES:
        raise ValueError("http is read only; use a folder or an object store")
    return text


def _check_title(text: str) -> str:
    """Check that a text is a title for people: letters, digits, spaces and some signs, without quotes."""
    if not _TITLE.fullmatch(text):
        raise ValueError(
            "expected at most 200 letters, digits, spaces, '_', '.', '/', '@', '+' and '-'"
        )
    return text


def _check_experiment(text: str) -> str:
    """Check that a text is an experiment's name: as a title, or with some more signs of names and paths."""
    if not _EXPERIMENT.fullmatch(text):
        raise ValueError(
            "expected at most 200 letters, digits, spaces, '_', '.', '/', '@', '+', '-', ':', ',', '&', "
            "apostrophes and parentheses"
        )
    return text


def _check_line(text: str) -> str:
    """The text as one line of printable characters; a line break becomes a space."""
    line = " ".join(text.split())
    if not line.isprintable():
        raise ValueError("expected text without control characters")
    return line


def _check_cluster(text: str) -> str:
    """Check that a text is a Ray address: ``auto``, ``local``, HOST:PORT or ``ray://HOST:PORT``."""
    if not _CLUSTER.fullmatch(text):
        raise ValueError("expected auto, local, HOST:PORT or ray://HOST:PORT")
    return text


def _check_server(text: str) -> str:
    """Check that a text is an MLflow server, ``http://HOST:PORT``, or a database, ``sqlite:///FILE``."""
    if not text.isprintable() or not (_SERVER.fullmatch(text) or _SQLITE.fullmatch(text)):
        raise ValueError(
            "expected http://HOST:PORT, https://HOST:PORT or sqlite:///FILE, a path without '?', '%', ';' "
            "and backslashes"
        )
    return text


def _check_webhook(text: str) -> str:
    """Check that a text is an address of a web server without a query."""
    if not text.isprintable() or not _WEBHOOK.fullmatch(text):
        raise ValueError("expected http://HOST:PORT/PATH or https://HOST/PATH, without a query")
    return text


def _check_variable(text: str) -> str:
    """Check that a text is the name of an environment variable."""
    if not _VARIABLE.fullmatch(text):
        raise ValueError("expected the name of an environment variable: letters, digits and '_'")
    return text


def _field(check: Callable[[str], str], hint: str = "") -> Any:
    """A validator of a field. Its errors do not repeat credentials."""

    def validate(text: str) -> str:
        if has_credentials(text) or (hint and "@" in text):
            reason = hint or _secret_reason(text)
            raise PydanticCustomError(SECRET_PROBLEM, "{reason}", {"reason": reason})
        try:
            return check(text)
        except (StorageError, ValueError) as error:
            raise PydanticCustomError(
                "text", "{reason}", {"reason": sanitize(str(error))}
            ) from None

    return AfterValidator(validate)


def _secret_reason(text: str) -> str:
    try:
        check_url(text)
    except StorageError as error:
        return str(error)
    return "it contains credentials; remove them"


_NO_CREDENTIALS = (
    "it contains credentials, which would be printed and tracked; remove them and set them in the "
    "environment: "
)

Name = Annotated[str, _field(_check_name)]
"""One segment of a path, e.g. of a model's folder."""

OutputFolder = Annotated[str, _field(_check_folder)]
"""A name below the root, or an absolute path or URL."""

RootUrl = Annotated[str, _field(_check_writable_url)]
"""URL or path of a folder for results."""

Title = Annotated[str, _field(_check_title)]
"""A title in a service, without quotes."""

ExperimentName = Annotated[str, _field(_check_experiment)]
"""Name of an experiment in a service, as teams choose it, e.g. ``/Shared/digits`` or ``team:digits``."""

Line = Annotated[str, AfterValidator(_check_line)]
"""Free text; it is shown as one line."""

ClusterAddress = Annotated[str, _field(_check_cluster, _NO_CREDENTIALS + "RAY_AUTH_TOKEN")]
"""Address of a Ray cluster."""

TrackingUri = Annotated[
    str,
    _field(
        _check_server,
        _NO_CREDENTIALS
        + "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    ),
]
"""Address of an MLflow server or database."""

WebhookUrl = Annotated[str, _field(_check_webhook, _NO_CREDENTIALS + "tracking.webhook.secret_env")]
"""Address of a web server that gets reports."""

VariableName = Annotated[str, _field(_check_variable)]
"""Name of an environment variable."""
