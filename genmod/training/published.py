"""A trained model on disk: config.json, two sets of weights, history, pictures, and model.json, last."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import ValidationError

from genmod import storage
from genmod.config import as_json, canonical_json, fingerprint
from genmod.errors import DataError
from genmod.manifest import FileEntry, Manifest, publish, require, write_file
from genmod.models.base import GenerativeModel, ModelConfig
from genmod.training.latents import PICTURES
from genmod.training.spool import read_spool
from genmod.training.state import TrainState, load_weights, weights_bytes

CONFIG, HISTORY, GRIDS = "config.json", "history.json", "grids"
FOLDERS = GRIDS, PICTURES
"""Where training puts pictures."""
EVENTS = "watch_events"
"""The fact that tells what happened when samples were watched, if anything did."""

Weights = Literal["ema", "raw"]
"""The moving average, or the weights that were trained."""

WEIGHTS: Mapping[Weights, str] = {"ema": "ema.safetensors", "raw": "raw.safetensors"}


def publish_model(
    root: str,
    config: ModelConfig,
    state: TrainState,
    *,
    fingerprint: str,
    parents: Mapping[str, str],
    facts: Mapping[str, Any],
) -> Manifest:
    """Write a trained model and publish it. For one rank.

    Args:
        root: URL of the model's folder, where its metrics and grids already are.
        config: builds the model.
        state: of the finished training.
        fingerprint: of the training run.
        parents: name of an input -> its digest.
        facts: JSON values for the manifest. Timings have no place in it: a run that was interrupted has the
            same manifest as one that was not.
    """
    files = [
        write_file(root, CONFIG, canonical_json(as_json(config))),
        write_file(root, WEIGHTS["ema"], weights_bytes(state.ema)),
        write_file(root, WEIGHTS["raw"], weights_bytes(state.model)),
    ]
    points = read_spool(root)
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
    if state.watch.events:
        found[EVENTS] = state.watch.events
    files.append(write_file(root, HISTORY, canonical_json(history)))
    files += _pictures(root)
    return publish(
        root,
        Manifest(
            kind="model",
            fingerprint=fingerprint,
            parents=dict(parents),
            files=tuple(files),
            facts=found | dict(facts),
        ),
    )


def digest_of(files: Sequence[FileEntry]) -> str:
    """Digest of a model as such: its configuration and its weights, however they came about."""
    names = {CONFIG, *WEIGHTS.values()}
    return fingerprint("model", {f.path: f.sha256 for f in files if f.path in names})


def model_config(root: str) -> ModelConfig:
    """What a published model is. ConfigError if there is none, DataError if it is broken."""
    manifest = require(Manifest, root, "model", "train")
    return _config(root, manifest)


def load_model(root: str, weights: Weights = "ema") -> GenerativeModel:
    """A published model on the CPU, ready to sample and score; every file is checked by its digest.

    Raises:
        ConfigError: there is no such model.
        DataError: a file is missing, or is not what the manifest says.
    """
    manifest = require(Manifest, root, "model", "train")
    model = _config(root, manifest).build()
    name = WEIGHTS[weights]
    load_weights(model, _checked(root, manifest, name), storage.join(root, name))
    return model.requires_grad_(False).eval()


def _config(root: str, manifest: Manifest) -> ModelConfig:
    try:
        return ModelConfig.model_validate(json.loads(_checked(root, manifest, CONFIG)))
    except (ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{root}/{CONFIG} configures no model of this genmod ({reason})") from None


def _checked(root: str, manifest: Manifest, name: str) -> bytes:
    """A file that the manifest names, if it fits its digest."""
    url = storage.join(root, name)
    entry = next((file for file in manifest.files if file.path == name), None)
    if entry is None:
        raise DataError(f"{root}: its manifest names no {name}")
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        raise DataError(f"{url} is missing; train the model again") from None
    if storage.sha256(data) != entry.sha256:
        raise DataError(f"{url} does not fit its digest; train the model again")
    return data


def _pictures(root: str) -> list[FileEntry]:
    """The pictures that training has made."""
    entries: list[FileEntry] = []
    found = [(folder, storage.list_names(storage.join(root, folder))) for folder in FOLDERS]
    for path in (f"{folder}/{name}" for folder, names in found for name in names):
        data = storage.read_bytes(storage.join(root, path))
        entries.append(FileEntry(path=path, size_bytes=len(data), sha256=storage.sha256(data)))
    return entries
