"""``genmod inspect KIND:WHERE``: what would be made of a source, in words and by a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from genmod import storage
from genmod.config import parse
from genmod.data.sharding.census_text import census_lines
from genmod.data.sharding.preview import SourceSheet, preview
from genmod.data.sources.config import DataConfig
from genmod.data.sources.guess import guess_source
from genmod.data.sources.registry import KINDS
from genmod.errors import ConfigError, did_you_mean, sanitize
from genmod.manifest import missing_manifest
from pipelines.recipe.context import configure_storage
from pipelines.recipe.recipe import load_recipe
from pipelines.recipe.scalars import typed
from pipelines.recipe.tree import assign


def is_source(text: str) -> bool:
    """Whether a text is ``KIND:WHERE`` with a known kind.

    >>> is_source("folder:photos"), is_source("s3://bucket/data"), is_source("photos")
    (True, False, False)
    """
    kind, _, where = text.partition(":")
    return kind in KINDS and bool(where) and not where.startswith("//")


def inspect_source(
    text: str, out: str, recipe: str | None = None, assignments: Sequence[str] = ()
) -> tuple[dict[str, Any], str]:
    """Describe a source: as JSON values, and as text for people. Writes nothing but the contact sheet.

    Args:
        text: the source.
        out: file that the contact sheet is written to; an existing file is replaced.
        recipe: recipe with other settings of ``data``; by default those without a recipe.
        assignments: ``data.KEY=VALUE`` each.

    Raises:
        ConfigError: the settings contradict the source.
        DataError: the source does not exist, or cannot be read.
    """
    found = preview(_data(text, recipe, assignments))
    lines = census_lines(found.census)
    if found.refused is not None:
        lines.append(f"refused   {found.refused}")
    out = storage.resolve(out)
    if found.sheet is None:
        lines.append("sheet     none: no sampled image can be used")
    else:
        storage.write_bytes(out, found.sheet.png)
        lines.append(f"sheet     {out}: {_described(found.sheet)}")
    values = found.census.model_dump(mode="json")
    values |= {"refused": found.refused, "sheet": out if found.sheet else None, "fingerprint": None}
    return values, "\n".join(map(sanitize, lines))


def no_dataset(url: str) -> ConfigError:
    """The error for a URL without a dataset; says which source is there, if any."""
    kind, colon, where = url.partition(":")
    if colon and kind.isalpha() and not where.startswith("//"):
        return ConfigError(
            f"no dataset at {url}, and {kind!r} is no kind of source; {did_you_mean(kind, KINDS)}"
        )
    source = guess_source(url)
    if source is None:
        return missing_manifest(url, "dataset", "shard")
    return ConfigError(
        f"no dataset at {url}; to see what would be made of the files there: genmod inspect {source}"
    )


def _data(text: str, recipe: str | None, assignments: Sequence[str]) -> DataConfig:
    """The settings of a recipe, or the defaults, with the source and with changes."""
    if recipe is not None:
        loaded = load_recipe(recipe, assignments)
        configure_storage(loaded)
        return parse(DataConfig, loaded.data.model_dump() | {"source": text}, "data")
    tree: dict[str, Any] = {"data": {}}
    for assignment in assignments:
        assign(tree, assignment)
    if tree.keys() != {"data"} or not isinstance(tree["data"], dict):
        raise ConfigError("inspect: --set changes keys of data only, e.g. --set data.resize=fit")
    return parse(DataConfig, typed(DataConfig, tree["data"]) | {"source": text}, "data")


def _described(sheet: SourceSheet) -> str:
    text = f"{sheet.images} images of all splits"
    if not sheet.classes:
        return text
    # Join consecutive numbers.
    runs: list[list[int]] = []
    for number in sheet.classes:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    numbers = ", ".join(f"{run[0]} to {run[-1]}" if run[1:] else str(run[0]) for run in runs)
    return f"{text}, one row per class, {numbers}"
