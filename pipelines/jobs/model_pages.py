"""Reads what pages show of one model: its evaluation, its training, and its pictures."""

from __future__ import annotations

from genmod import storage
from genmod.evaluation.measure import metrics_from
from genmod.interface.model_store import HISTORY
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import Manifest, read_listed
from genmod.report.curves import training_curves
from genmod.report.evaluated import (
    check_latent_use,
    family_and_events,
    read_history,
    shown_evaluation,
)
from genmod.report.model_page import EXTREMES, ModelPage
from genmod.training.monitors.latents import LATENT_IMAGES

_PICTURES = "samples.png", "nearest.png"
_LATENT_PICTURES = f"{LATENT_IMAGES}/reconstructions.png", f"{LATENT_IMAGES}/traversals.png"


def read_model_page(snapshot: ManifestSnapshot, name: str, model_root: str, root: str) -> ModelPage:
    """The content of a page about one model.

    Args:
        snapshot: the manifests that the command has read.
        name: of the model on the page.
        model_root: URL of the model.
        root: URL of its evaluation.

    Raises:
        ConfigError: the model or its evaluation is absent.
        DataError: a file is missing or was changed, or has values that the page cannot show.
    """
    model = snapshot.require(Manifest, model_root, "model", "train")
    evaluation = snapshot.require(Manifest, root, "evaluation", "evaluate")
    history_url = storage.join(model_root, HISTORY)
    history = read_history(read_page_file(model_root, model, HISTORY), history_url)
    losses, quantities = training_curves(history)
    latents = {
        key.removeprefix("latents/"): value
        for key, value in (history[-1].metrics if history else {}).items()
        if key.startswith("latents/")
    }
    if latents:
        check_latent_use(latents, history_url)
    family, events = family_and_events(model.metadata, model_root)
    pictures = {name: read_page_file(root, evaluation, name) for name in _PICTURES}
    optional = (root, evaluation, (EXTREMES,)), (model_root, model, _LATENT_PICTURES)
    for folder, manifest, names in optional:
        listed = {entry.path for entry in manifest.files}
        if not listed.isdisjoint(names):
            pictures |= {name: read_page_file(folder, manifest, name) for name in names}
    return ModelPage(
        name=name,
        family=family,
        metrics=metrics_from(evaluation.metadata),
        metadata=shown_evaluation(evaluation.metadata, root),
        pictures=pictures,
        losses=losses,
        quantities=quantities,
        events=events,
        latents=latents,
    )


def read_page_file(root: str, manifest: Manifest, path: str) -> bytes:
    """A file that a manifest lists. DataError if it is missing or was changed."""
    return read_listed(root, manifest, path, "remove that folder and run its stage again")
