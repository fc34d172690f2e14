"""Registry of the kinds of source: the name before the colon of ``data.source``."""

from __future__ import annotations

from collections.abc import Mapping

from genmod import storage
from genmod.data.sources.arrays import Builtin
from genmod.data.sources.config import NO_OPTIONS, SourceOptions
from genmod.data.sources.folder import Folder
from genmod.data.sources.idx import Idx
from genmod.data.sources.npz import Npz
from genmod.data.sources.parquet import Parquet
from genmod.data.sources.source import Source
from genmod.data.sources.webdataset import WebDatasetSource
from genmod.errors import ConfigError, did_you_mean

KINDS: Mapping[str, type[Source]] = {
    source.kind: source for source in (Builtin, Idx, Npz, Folder, WebDatasetSource, Parquet)
}


def open_source(text: str, options: SourceOptions = NO_OPTIONS) -> Source:
    """Create the source that ``KIND:WHERE`` names; nothing is read yet.

    Args:
        text: the recipe's ``data.source``.
        options: which image and label of a row are meant.

    Raises:
        ConfigError: an unknown kind, or a shell command (``pipe:``).
    """
    kind, colon, where = text.partition(":")
    if not colon or not where or where.startswith("//"):
        raise ConfigError(
            f"recipe: data.source is {text!r}, expected KIND:WHERE, e.g. folder:{text}; "
            f"kinds: {', '.join(sorted(KINDS))}"
        )
    if kind not in KINDS:
        raise ConfigError(
            f"recipe: data.source is {text!r}, unknown kind {kind!r}; {did_you_mean(kind, KINDS)}"
        )
    if any(link.strip().startswith("pipe:") for link in where.split("::")):
        raise ConfigError(
            f"recipe: data.source is {text!r}; shell commands are not run, give files or URLs"
        )
    return KINDS[kind](where if kind == Builtin.kind else storage.resolve(where), options)
