"""Loads a published model: configuration and weights, checked by digest. Nothing in the files is executed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field
from torch import nn

from genmod import storage
from genmod.budget import BUDGET
from genmod.config import fingerprint
from genmod.documents import parse_document, validate
from genmod.errors import ConfigError, DataError
from genmod.interface.model import GenerativeModel
from genmod.interface.registry import ModelConfig
from genmod.manifest import FileEntry, Manifest, read_listed, require
from genmod.tensors import check_file_size, parse_tensors, tensor_bytes

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
    """Load a published model on the CPU, to sample and score. Every file is checked before it is used.

    Raises:
        ConfigError: there is no such model.
        DataError: a file is missing, differs from its digest in the manifest, configures no model, or does
            not contain the model's tensors with finite values.
    """
    manifest = require(Manifest, root, "model", "train")
    config, where = _config(root, manifest), storage.join(root, WEIGHTS[weights])
    try:
        # The file is compared with the model's shapes before it is read, and before the model is allocated.
        model = config.shapes()
        for entry in manifest.files:
            if entry.path == WEIGHTS[weights]:
                check_file_size(entry.size_bytes, model.state_dict(), where, _HINT)
        data = read_listed(root, manifest, WEIGHTS[weights], _HINT)
        tensors = parse_tensors(data, model.state_dict(), where, _HINT)
        if any(tensor.is_meta for tensor in model.state_dict().values()):
            model = config.build()
    except ConfigError as error:
        raise _no_model(root, str(error)) from None
    model.load_state_dict(tensors)
    return model.requires_grad_(False).eval()


def _config(root: str, manifest: Manifest) -> ModelConfig:
    data, where = read_listed(root, manifest, CONFIG, _HINT), storage.join(root, CONFIG)
    return parse_document(ModelConfig, data, "a model's configuration", where, _HINT)


def _no_model(root: str, reason: str) -> DataError:
    reason = reason.removeprefix("recipe: ")
    return DataError(f"{root}/{CONFIG} configures no model of this genmod ({reason}); {_HINT}")


class ModelClasses(BaseModel):
    """What the metadata of a model's manifest says about its classes."""

    class_names: tuple[Annotated[str, Field(max_length=1_000)], ...] = Field(
        default=(), max_length=BUDGET.classes
    )
    """Names of the labels; empty if they have none."""
    empty_classes: tuple[Annotated[int, Field(ge=0, lt=BUDGET.classes)], ...] = Field(
        default=(), max_length=BUDGET.classes
    )
    """Numbers of the classes without training rows."""


def classes_of(model: PublishedModel) -> ModelClasses:
    """The classes of a model. DataError if its manifest has other values, or none has training rows."""
    found = validate(ModelClasses, model.manifest.metadata, "a trained model", model.root, _HINT)
    empty, classes = set(found.empty_classes), model.config.spec.classes
    if empty and (len(empty) >= classes or max(empty) >= classes):
        raise DataError(
            f"{model.root}: its empty classes are not some of {classes} classes; {_HINT}"
        )
    return found


def weights_bytes(model: nn.Module) -> bytes:
    """A model's parameters and buffers as a safetensors file."""
    return tensor_bytes(model.state_dict())
