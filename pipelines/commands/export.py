"""``genmod export``: a trained model in a format of other programs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from genmod import storage
from genmod.config import parse
from genmod.errors import ConfigError
from genmod.export.job import ExportFormat, export_model
from genmod.generation.config import SampleConfig
from pipelines.recipe.context import ALREADY_DONE, DONE, Context, configure_storage
from pipelines.recipe.progress import ProgressDisplay
from pipelines.recipe.recipe import load_recipe
from pipelines.tracking import registry
from pipelines.tracking.model_uri import version_at

_REGISTERED = "models:/"


@dataclass(frozen=True)
class ExportRequest:
    """An export as the command line names it."""

    model: str
    """Name of the model in the recipe, its URI in the recipe's registry, or without a recipe the URL of its
    folder."""
    kind: ExportFormat
    out: str
    """Folder to write."""
    recipe: str | None = None
    assignments: Sequence[str] = ()
    """Changes of the recipe."""


def export(request: ExportRequest, progress: ProgressDisplay) -> dict[str, Any]:
    """Export a model; the command's JSON result.

    Args:
        request: what to export, and where to.
        progress: for the lines for people.

    Raises:
        ConfigError: the model does not exist or does not fit the format, or the folder contains other work.
        GenmodError: the result does not compute what the model does.
    """
    root = _model_root(request)
    out = storage.resolve(request.out)
    manifest, was_done = export_model(root, out, request.kind)
    state = ALREADY_DONE if was_done else DONE
    progress.log(f"export: {state}: {out}; README.md there says how to use it")
    return {
        "stage": "export",
        "status": state,
        "output": out,
        "fingerprint": manifest.fingerprint,
        "digest": manifest.digest,
        "model": manifest.parents["model"],
        "largest_difference": manifest.metadata.get("largest_difference"),
    }


def _model_root(request: ExportRequest) -> str:
    """URL of the folder of the model that is exported."""
    is_registered = request.model.startswith(_REGISTERED)
    if request.recipe is None:
        if request.assignments or is_registered:
            raise ConfigError(
                "export: --set and a model of the registry need a recipe; give one with --recipe"
            )
        return storage.resolve(request.model)
    configure_storage(loaded := load_recipe(request.recipe, request.assignments))
    if not is_registered:
        loaded.entry(request.model)
        return loaded.at("models", request.model)
    parse(SampleConfig, {"model": request.model}, "--")  # the form of its URI
    with closing(Context(loaded, tuple(loaded.model))) as context:
        version = version_at(context.tracker, request.model)
        return registry.model_root(context.tracker, version)
