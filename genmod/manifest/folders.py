"""Folders of earlier versions: a version of a dataset that grew names those whose shards it shares.

They are relative, so a root with all its versions can be copied or moved. The forms allow the layout of
versions (``ROOT/data``, ``ROOT/retrain/vN/data``), the data of roots side by side, and folders side by side,
and nothing else.
"""

from __future__ import annotations

import posixpath
import re
from typing import Annotated

from pydantic import Field

from genmod.errors import ConfigError, DataError
from genmod.storage import resolve, scheme_of

VERSIONS_FOLDER = "retrain"
"""Below the recipe's root: a folder for each version after the first."""

_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
_FOLDER = rf"\.\./\.\./\.\./data|\.\./\.\./{_NAME}/data|\.\./{_NAME}"
"""Version 1 and version N as seen from ``ROOT/retrain/vM/data``, or the data of a root next to this one; a
folder next to this one."""

SharedFolder = Annotated[str, Field(pattern=rf"^({_FOLDER})$")]
"""Type of a manifest's field: a folder relative to the manifest's own."""


def relative_folder(root: str, shared: str) -> str:
    """How a new version at ``root`` names the folder of an earlier one.

    >>> relative_folder("s3://bucket/run/retrain/v0002/data", "s3://bucket/run/data")
    '../../../data'

    Raises:
        ConfigError: the folders are not in the layout of versions, nor side by side.
    """
    if (path := folder_name(root, shared)) is not None:
        return path
    raise ConfigError(
        f"{root}: a new version shares the shards of {shared}, which must be next to it, or both in the "
        f"layout ROOT/data and ROOT/{VERSIONS_FOLDER}/vN/data; choose such a folder"
    )


def folder_name(root: str, shared: str) -> str | None:
    """As :func:`relative_folder`; None if a dataset at ``root`` cannot name the folder."""
    start, target = _split(root), _split(shared)
    if start[0] != target[0]:
        return None
    path = posixpath.relpath(f"/{target[1]}", f"/{start[1]}")
    return path if re.fullmatch(_FOLDER, path) else None


def shared_folder(root: str, folder: str) -> str:
    """URL of an earlier version's folder, as the manifest in ``root`` names it.

    >>> shared_folder("/run/retrain/v0002/data", "../../../data")
    '/run/data'

    Raises:
        DataError: the name leads above the top of the store, or back to ``root``.
    """
    prefix, path = _split(root)
    parts = path.split("/")
    up = folder.count("../")
    below = folder.removeprefix("../" * up)
    url = f"{prefix}{'/'.join([*parts[:-up], below])}"
    if up > len(parts) or url == f"{prefix}{path}":
        raise DataError(
            f"{root}: its manifest names the folder {folder} of an earlier version, which cannot exist; "
            "restore the manifest"
        )
    return url


def _split(url: str) -> tuple[str, str]:
    """A URL's scheme with host or bucket (``/`` for a local path), and its path."""
    url = resolve(url)
    scheme = scheme_of(url)
    if not scheme:
        return "/", posixpath.normpath(url).strip("/")
    rest = url[len(scheme) + 3 :]
    if scheme in ("file", "memory"):
        start = f"{scheme}:///" if rest.startswith("/") else f"{scheme}://"
        return start, rest.strip("/")
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}/", path.strip("/")
