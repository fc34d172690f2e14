"""Families from outside this package: the folders that the environment variable ``GENMOD_FAMILIES`` names.

    GENMOD_FAMILIES=/home/me/families genmod train --recipe mine.yaml

With /home/me/families/coins.py, the recipe may say ``family: coins``.

Each Python file or package in such a folder is one family, exactly as in ``genmod/models``. Workers on other
machines get the variable, so the folder must exist there under the same path. Only the person who sets the
environment chooses this code: a recipe or a model's ``config.json`` contains the name of a family, never a
module or a path.
"""

from __future__ import annotations

import os

from genmod.errors import ConfigError

FAMILIES_VARIABLE = "GENMOD_FAMILIES"
"""Environment variable: absolute paths of folders with families, separated as in PATH."""


def family_folders() -> tuple[str, ...]:
    """Folders that the environment names, in order.

    Raises:
        ConfigError: one of them is not an absolute path of a folder.
    """
    folders = [f for f in os.environ.get(FAMILIES_VARIABLE, "").split(os.pathsep) if f]
    for folder in folders:
        if not (os.path.isabs(folder) and os.path.isdir(folder)):
            raise ConfigError(
                f"{FAMILIES_VARIABLE}: expected absolute paths of folders, got {folder!r}; "
                "on a cluster the folder must exist on every node"
            )
    return tuple(dict.fromkeys(folders))
