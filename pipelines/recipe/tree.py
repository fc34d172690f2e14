"""A recipe's tree: the file with ``--set`` applied and absolute paths, before it is validated.

Imports no torch and no Ray, so that a command can find its root at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from genmod.budget import BUDGET
from genmod.errors import ConfigError, did_you_mean
from pipelines.recipe.relative_paths import resolve_paths
from pipelines.recipe.scalars import typed
from pipelines.recipe.yaml_text import parse_yaml, read_yaml

RECIPES = Path(__file__).parents[1] / "recipes"
"""Folder of the recipes that genmod ships."""


def shipped_recipes() -> list[str]:
    """Sorted names of the recipes that genmod ships."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_tree(name_or_file: str, assignments: Sequence[str] = ()) -> dict[str, Any]:
    """The sections of a recipe with ``--set a.b=c`` applied in order; not validated.

    Args:
        name_or_file: as :func:`~pipelines.recipe.recipe.load_recipe`.
        assignments: texts ``path.to.key=value``.

    Raises:
        ConfigError: the file cannot be read, is no mapping, or an assignment has another form.
    """
    tree, folder = _read(name_or_file)
    tree = resolve_paths(tree, folder)
    for text in assignments:
        assign(tree, text)
    return resolve_paths(tree, os.getcwd())


def _read(name_or_file: str) -> tuple[dict[str, Any], str]:
    """The tree of a recipe, and the folder where its relative paths start."""
    is_name = "/" not in name_or_file and name_or_file in shipped_recipes()
    path = str(RECIPES / f"{name_or_file}.yaml") if is_name else name_or_file
    try:
        tree = read_yaml(path, f"the recipe {name_or_file!r}")
    except FileNotFoundError:
        raise ConfigError(
            f"no recipe {name_or_file!r}: it is neither a file nor a shipped recipe; "
            f"{did_you_mean(name_or_file, shipped_recipes())}"
        ) from None
    if not isinstance(tree, dict):
        kind = type(typed(Any, tree)).__name__
        raise ConfigError(f"{path} must be a mapping of sections, got {kind}")
    folder = os.getcwd() if is_name else os.path.dirname(os.path.abspath(path))
    return cast("dict[str, Any]", tree), folder


def assign(tree: dict[str, Any], text: str) -> None:
    """Apply ``--set a.b=c`` to the tree of a recipe. Raises ConfigError for another form."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys) or len(keys) > BUDGET.recipe_nesting:
        raise ConfigError(f"--set {text!r}: expected key=value, e.g. --set train.workers=2")
    parsed = parse_yaml(value, f"--set {text!r}")
    if "#" in value and _ends_in_comment(value, parsed):
        raise ConfigError(
            f"--set {text!r}: the text after '#' would be a comment; put the value in quotes, e.g. "
            "--set 'key=\"a #b\"'"
        )
    section: Any = tree
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {text!r}: {key!r} is a value, not a section")
    section[keys[-1]] = parsed


def _ends_in_comment(value: str, parsed: Any) -> bool:
    """Whether one more character at the end of YAML text, whose values are given, changes nothing."""
    try:
        return parse_yaml(f"{value}x", "") == parsed
    except ConfigError:
        return False
