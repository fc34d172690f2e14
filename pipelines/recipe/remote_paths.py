"""Paths of this machine in a recipe whose work is done on another one."""

from __future__ import annotations

from collections.abc import Callable

from cluster.reach import is_this_machine
from genmod import storage
from genmod.errors import ConfigError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.relative_paths import local_paths


def check_paths(recipe: Recipe, host: str, is_used: Callable[[str], bool]) -> None:
    """Refuse paths of this machine in a recipe for another one.

    Args:
        recipe: with absolute paths.
        host: where the work is done.
        is_used: whether a key of the recipe is used there.

    Raises:
        ConfigError: such a key has a path, and no shared folder contains it.
    """
    if not is_this_machine(host):
        refuse_paths(recipe, f"at {host}", is_used)


def refuse_paths(recipe: Recipe, place: str, is_used: Callable[[str], bool]) -> None:
    """Refuse paths of this machine.

    Args:
        recipe: with absolute paths.
        place: where the work is done, in words.
        is_used: whether a key of the recipe is used there.

    Raises:
        ConfigError: such a key has a path, and no shared folder contains it.
    """
    for key, path in local_paths(recipe.model_dump(mode="json")):
        shared = any(storage.is_below(path, folder) for folder in recipe.cluster.shared_folders)
        if is_used(key) and not shared:
            raise ConfigError(
                f"recipe: {key} has the path {path}, which is of this machine, but the job runs {place}; "
                "use a URL of an object store, or, if all nodes see the same folder, name it in "
                "cluster.shared_folders"
            )
