"""Relative paths of a recipe: those in its file start at the file's folder, others at the current folder.

Both become absolute while the recipe is loaded, so that every later step and every other process agree.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, cast

from genmod.storage.urls import SCHEMES
from pipelines.recipe.scalars import Plain, is_null

_SQLITE = "sqlite:///"

_PATH, _SOURCE, _DATABASE = "PATH", "KIND:PATH", "sqlite:///PATH"
"""Forms of values that contain a path."""

_PATHS = (
    (("root",), _PATH),
    (("data", "source"), _SOURCE),
    (("score", "data"), _PATH),
    (("promote", "ledger"), _PATH),
    (("tracking", "artifacts"), _PATH),
    (("tracking", "roots"), _PATH),
    (("tracking", "uri"), _DATABASE),
    (("train", "order", "mixture"), _PATH),
    (("model", "*", "train", "order", "mixture"), _PATH),
)
"""Keys of values that name files or folders, which may be relative, and the form of the value."""

_NODE_PATHS = ((("storage", "cache", "folder"), _PATH),)
"""The same of folders that each node has for itself."""

_OUTPUTS = (
    (("sample", "output"), _PATH),
    (("score", "output"), _PATH),
    (("evaluate", "ood"), _PATH),
)
"""Keys of values that are a name below the root or an absolute path."""

Change = Callable[[str], str]
"""From a value of the recipe to the value with an absolute path."""


def resolve_paths(tree: dict[str, Any], folder: str) -> dict[str, Any]:
    """A recipe's tree with absolute paths.

    Args:
        tree: as YAML gave it; a value of another type than a text is left for the validation.
        folder: where relative paths start; an absolute path.
    """
    changes: dict[str, Change] = {
        _PATH: lambda text: _absolute(text, folder),
        _SOURCE: lambda text: _source(text, folder),
        _DATABASE: lambda text: _database(text, folder),
    }
    changed: Any = tree
    for keys, form in (*_PATHS, *_NODE_PATHS):
        changed = _at(changed, keys, changes[form])
    return cast("dict[str, Any]", changed)


def local_paths(tree: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Key and value of each absolute path that a recipe's tree names on this machine.

    The folder of the cache is not among them, because it is one of each node.
    """
    found: list[tuple[str, str]] = []

    def note(keys: tuple[str, ...], path: str) -> str:
        if path.startswith(("/", "file://")):
            found.append((".".join(keys), path.removeprefix("file://")))
        return path

    for keys, form in (*_PATHS, *_OUTPUTS):
        _at(tree, keys, lambda text, k=keys, f=form: note(k, _path_in(text, f)))
    return found


def _path_in(text: str, form: str) -> str:
    """The path in a value of this form; empty if it contains none."""
    if form == _SOURCE:
        return text.partition(":")[2]
    if form == _DATABASE:
        return text.removeprefix(_SQLITE) if text.startswith(_SQLITE) else ""
    return text


def _at(value: Any, keys: tuple[str, ...], change: Change) -> Any:
    """A copy of a tree with the value at these keys changed; ``*`` stands for every key."""
    if not keys:
        return _leaves(value, change)
    if not isinstance(value, Mapping):
        return value
    section = cast("Mapping[str, Any]", value)
    return {
        key: _at(inner, keys[1:], change) if keys[0] in ("*", key) else inner
        for key, inner in section.items()
    }


def _leaves(value: Any, change: Change) -> Any:
    """Change a text, each text of a list, or each key of a mapping of paths to numbers."""
    if isinstance(value, str):
        return value if isinstance(value, Plain) and is_null(value) else change(value)
    if isinstance(value, list):
        return [_leaves(item, change) for item in cast("list[Any]", value)]
    if isinstance(value, Mapping):
        from genmod.data.order.training_order import MAIN  # imports torch: seconds

        paths = cast("Mapping[str, Any]", value)
        return {key if key == MAIN else change(key): share for key, share in paths.items()}
    return value


def _absolute(text: str, folder: str) -> str:
    """A relative path below a folder; URLs, absolute paths and ``~`` are left as they are."""
    is_path = (
        "::" not in text and text.partition(":")[0].lower() not in SCHEMES and "://" not in text
    )
    if not text or text.startswith(("/", "~")) or not is_path:
        return text  # an error of the validation names the whole text
    if ".." in text.split("/"):  # after a link, .. means the folder above the link's target
        return os.path.realpath(os.path.join(folder, text))
    return os.path.normpath(os.path.join(folder, text))


def _source(text: str, folder: str) -> str:
    kind, colon, where = text.partition(":")
    if not colon or kind == "builtin" or kind in SCHEMES:
        return text
    return f"{kind}:{_absolute(where, folder)}"


def _database(text: str, folder: str) -> str:
    file = text.removeprefix(_SQLITE)
    return f"{_SQLITE}{_absolute(file, folder)}" if file and text.startswith(_SQLITE) else text
