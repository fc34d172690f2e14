"""Loads a published model: configuration and weights, checked by digest. Nothing in the files is executed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from genmod import storage
from genmod.config import fingerprint
from genmod.errors import DataError
from genmod.interface.model import GenerativeModel
from genmod.interface.registry import ModelConfig
from genmod.manifest import FileEntry, Manifest, read_listed, require

_HINT = "remove the folder and train the model again"
CONFIG, HISTORY, GRIDS = "config.json", "history.json", "grids"


Weights = Literal["ema", "raw"]
"""``ema``: the moving average of the weights. ``raw``: the trained weights."""


WEIGHTS: Mapping[Weights, str] = {"ema": "ema.safetensors", "raw": "raw.safetensors"}


def digest_of(files: Sequence[FileEntry]) -> str:
    """Digest of a model: of its configuration and weights alone, not of its training."""
    names = {CONFIG, *WEIGHTS.values()}
    return fingerprint("model", {f.path: f.sha256 for f in files if f.path in names})


@dataclass(frozen=True)
class PublishedModel:
    """A published model without its weights."""

    root: str
    """URL of its folder."""
    manifest: Manifest
    config: ModelConfig


def open_model(root: str, manifest: Manifest) -> PublishedModel:
    """Read the configuration of a published model. DataError if it is broken.

    Args:
        root: URL of the model's folder.
        manifest: the model's manifest.
    """
    return PublishedModel(root, manifest, _config(root, manifest))


def load_model(root: str, weights: Weights = "ema") -> GenerativeModel:
    """Load a published model on the CPU, to sample and score. The digest of each file is checked.

    Raises:
        ConfigError: there is no such model.
        DataError: a file is missing, or differs from its digest in the manifest.
    """
    manifest = require(Manifest, root, "model", "train")
    model = _config(root, manifest).build()
    name = WEIGHTS[weights]
    load_weights(model, read_listed(root, manifest, name, _HINT), storage.join(root, name))
    return model.requires_grad_(False).eval()


def _config(root: str, manifest: Manifest) -> ModelConfig:
    try:
        return ModelConfig.model_validate(json.loads(read_listed(root, manifest, CONFIG, _HINT)))
    except (ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{root}/{CONFIG} configures no model of this genmod ({reason})") from None


def weights_bytes(model: nn.Module) -> bytes:
    """A model's parameters and buffers as a safetensors file."""
    return tensor_bytes(model.state_dict())


def load_weights(model: nn.Module, data: bytes, where: str) -> None:
    """Load weights into a model.

    Args:
        model: receives the weights.
        data: a safetensors file.
        where: name of the file, for the error.

    Raises:
        DataError: the tensors are not this model's.
    """
    try:
        model.load_state_dict(tensors_of(data, where), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{where} does not fit the model's configuration: {reason}") from None


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Encode tensors as a safetensors file."""
    on_cpu = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    return safetensors.save(on_cpu)


def tensors_of(data: bytes, where: str) -> dict[str, Tensor]:
    """Decode a safetensors file to tensors on the CPU. DataError if it is not one."""
    try:
        return safetensors.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"{where} is not a safetensors file: {error}") from None
