"""A trained model on disk: config.json, two sets of weights, history, pictures, and model.json, last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genmod import storage
from genmod.config import as_json, canonical_json
from genmod.interface.model_store import (
    CONFIG,
    GRIDS,
    HISTORY,
    WEIGHTS,
    digest_of,
    weights_bytes,
)
from genmod.interface.registry import ModelConfig
from genmod.manifest import FileEntry, Manifest, publish, write_file
from genmod.training.metric_log import read_metrics
from genmod.training.monitors.latents import LATENT_IMAGES
from genmod.training.state import TrainState

_IMAGE_FOLDERS = GRIDS, LATENT_IMAGES
"""Where training puts pictures."""


MONITOR_EVENTS = "monitor_events"
"""The fact that tells what happened when samples were watched, if anything did."""


def publish_model(
    root: str,
    config: ModelConfig,
    state: TrainState,
    *,
    fingerprint: str,
    parents: Mapping[str, str],
    metadata: Mapping[str, Any],
) -> Manifest:
    """Write a trained model and publish it. For one rank.

    Args:
        root: URL of the model's folder, where its metrics and grids already are.
        config: builds the model.
        state: of the finished training.
        fingerprint: of the training run.
        parents: name of an input -> its digest.
        metadata: JSON values for the manifest. It must not contain timings: an interrupted run has the same
            manifest as an uninterrupted one.
    """
    files = [
        write_file(root, CONFIG, canonical_json(as_json(config))),
        write_file(root, WEIGHTS["ema"], weights_bytes(state.ema)),
        write_file(root, WEIGHTS["raw"], weights_bytes(state.model)),
    ]
    points = read_metrics(root)
    history = [{"nimg": point.nimg, "metrics": point.metrics} for point in points]
    parameters = {
        phase.name: sum(p.numel() for p in state.model.parameters_of(phase).values())
        for phase in state.model.phases()
    }
    found: dict[str, Any] = {
        "nimg": state.nimg,
        "family": config.family,
        "parameters": parameters,
        "model_digest": digest_of(files),
        "final": points[-1].metrics if points else {},
    }
    if state.monitor_state.events:
        found[MONITOR_EVENTS] = state.monitor_state.events
    files.append(write_file(root, HISTORY, canonical_json(history)))
    files += _pictures(root)
    return publish(
        root,
        Manifest(
            kind="model",
            fingerprint=fingerprint,
            parents=dict(parents),
            files=tuple(files),
            metadata=found | dict(metadata),
        ),
    )


def _pictures(root: str) -> list[FileEntry]:
    """The pictures that training has made."""
    entries: list[FileEntry] = []
    found = [(folder, storage.list_names(storage.join(root, folder))) for folder in _IMAGE_FOLDERS]
    for path in (f"{folder}/{name}" for folder, names in found for name in names):
        data = storage.read_bytes(storage.join(root, path))
        entries.append(FileEntry(path=path, size_bytes=len(data), sha256=storage.sha256(data)))
    return entries
