"""Publishes a trained model: config.json, EMA and raw weights, history, images, and at last model.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genmod import storage
from genmod.budget import BUDGET
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
"""Folders of images that training writes."""


MONITOR_EVENTS = "monitor_events"
"""Key of the manifest's metadata for the monitors' events, if there are any."""


def publish_model(
    root: str,
    config: ModelConfig,
    state: TrainState,
    *,
    fingerprint: str,
    parents: Mapping[str, str],
    metadata: Mapping[str, Any],
) -> Manifest:
    """Write a trained model and publish its manifest. For rank 0 alone.

    Args:
        root: URL of the model's folder, which contains its metric log and images.
        config: builds the model.
        state: of the finished training.
        fingerprint: of the training.
        parents: name of an input -> its digest.
        metadata: JSON values for the manifest. Timings do not belong there: an interrupted training has the
            same manifest as an uninterrupted one.

    Raises:
        StorageError: a file cannot be written.
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
    results: dict[str, Any] = {
        "nimg": state.nimg,
        "family": config.family,
        "parameters": parameters,
        "model_digest": digest_of(files),
        "final": points[-1].metrics if points else {},
    }
    if state.monitor_state.events:
        results[MONITOR_EVENTS] = state.monitor_state.events
    files.append(write_file(root, HISTORY, canonical_json(history)))
    files += _images(root)
    return publish(
        root,
        Manifest(
            kind="model",
            fingerprint=fingerprint,
            parents=dict(parents),
            files=tuple(files),
            metadata=results | dict(metadata),
        ),
    )


def _images(root: str) -> list[FileEntry]:
    """The images that training has written."""
    entries: list[FileEntry] = []
    paths = [
        f"{folder}/{name}"
        for folder in _IMAGE_FOLDERS
        for name in storage.list_names(storage.join(root, folder))
    ]
    for path in paths:
        data = storage.read_below(root, path, BUDGET.image_file_bytes)
        entries.append(FileEntry(path=path, size_bytes=len(data), sha256=storage.sha256(data)))
    return entries
