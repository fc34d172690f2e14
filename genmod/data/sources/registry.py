"""The kinds of source, by the name before the colon of ``data.source``."""

from __future__ import annotations

from collections.abc import Mapping

from genmod import storage
from genmod.data.sources.arrays import Builtin, Idx, Npz
from genmod.data.sources.folder import Folder
from genmod.data.sources.parquet import Parquet
from genmod.data.sources.source import Source
from genmod.data.sources.webdataset import WebDatasetSource
from genmod.errors import ConfigError, did_you_mean

KINDS: Mapping[str, type[Source]] = {
    source.kind: source for source in (Builtin, Idx, Npz, Folder, WebDatasetSource, Parquet)
}


def open_source(text: str) -> Source:
    """The source that ``KIND:WHERE`` names. Touches nothing yet.

    Raises:
        ConfigError: there is no such kind.
    """
    kind, colon, where = text.partition(":")
    if not colon or not where or where.startswith("//"):
        raise ConfigError(
            f"recipe: data.source is {text!r}, wanted KIND:WHERE, e.g. folder:{text}; "
            f"kinds: {', '.join(sorted(KINDS))}"
        )
    if kind not in KINDS:
        raise ConfigError(
            f"recipe: data.source is {text!r}, no kind of source is called {kind!r}; "
            f"{did_you_mean(kind, KINDS)}"
        )
    return KINDS[kind](where if kind == Builtin.kind else storage.resolve(where))
