"""Feature spaces: fitted to the real training split, published as an artifact, identified by their digest.

For data with labels the features are the hidden layer of a small classifier, else the principal components
of pixels; on request those of seeded random convolutions, or the outputs of a net that the user names, of
which nothing is fitted. A metric in a feature space has its name, e.g.
``fd[classifier-v1@1a2b3c4d]``.
Letters: N rows, B batch, C channels, H height, W width, D features, P pooled pixels.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from genmod import storage, units
from genmod.budget import BUDGET
from genmod.config import Config, canonical_json, fingerprint
from genmod.documents import parse_document
from genmod.errors import ConfigError, DataError, TrainingDiverged
from genmod.manifest import (
    FileEntry,
    ImageSpec,
    Manifest,
    read_checked,
    read_listed,
    require,
    write_file,
)
from genmod.metrics.extractors import Classifier, ExtractorConfig, Network, Pca, RandomConvolutions
from genmod.metrics.onnx_file import OnnxConfig, read_named, read_onnx
from genmod.metrics.onnx_net import OnnxNetwork
from genmod.net_budget import net_budget
from genmod.permutation import shuffle
from genmod.rng import philox_key, rng_for
from genmod.tensors import check_file_size, parse_tensors, tensor_bytes

_CONFIG_FILE = "config.json"
_WEIGHTS_FILE = re.compile(r"weights-[0-9a-f]{12}\.(safetensors|onnx)")
_HINT = "remove the folder and run genmod evaluate again"
_BATCH_ROWS = 512
"""Images that go through an extractor together."""


class FeaturesConfig(Config):
    """The recipe's ``evaluate.features``: how the feature space is fitted."""

    kind: Literal["auto", "classifier", "pca", "random_conv", "onnx"] = "auto"
    """``auto``: a classifier for data with labels; principal components for data without, with one class, or
    where the classifier is no better than chance on validation images. ``random_conv``: convolutions with
    random weights of the seed, which learn nothing from the data but mean and scale. ``onnx``: a net in a
    file, e.g. Inception or DINOv2."""
    onnx: OnnxConfig | None = Field(default=None, exclude_if=lambda net: net is None)
    """The net of kind ``onnx``; null for the other kinds."""
    rows: int = Field(default=60_000, ge=2, le=100_000_000)
    """Most training images that are used."""
    train_images: int = Field(default=80_000, ge=1, le=BUDGET.nimg)
    """Images that the classifier sees in training, over all epochs."""
    batch_images: int = Field(default=64, ge=1, le=1 << 20)
    """Images of a training step of the classifier."""
    learning_rate: float = Field(default=2e-3, gt=0, le=1e3)
    """Peak learning rate; it decays to 0 along half a cosine."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "onnx") != (self.onnx is not None):
            raise ValueError(
                "kind onnx needs the section onnx, with file and sha256; other kinds have no such section"
            )
        return self

    def result(self) -> dict[str, Any]:
        """The fields that change the feature space: all but the place of a net's file."""
        return self.model_dump(mode="json", exclude={"onnx": {"file"}})

    def extractor(self, spec: ImageSpec) -> ExtractorConfig:
        """The extractor for images of a spec. ConfigError for a classifier without labels."""
        if self.kind == "classifier" and not spec.classes:
            raise ConfigError(
                "evaluate.features.kind is 'classifier', but the data has no labels; use 'auto' or 'pca'"
            )
        automatic = "classifier" if spec.classes else "pca"
        space = self.onnx.space if self.kind == "onnx" and self.onnx is not None else None
        kind = automatic if self.kind == "auto" else self.kind
        return ExtractorConfig(kind=kind, spec=spec, onnx=space)


@dataclass(frozen=True)
class Features:
    """Features and classes of N images."""

    features_ND: Tensor
    """(N, D), float64."""
    classes_N: Tensor | None
    """(N,), int64, the class assigned to each image; None for an extractor without classes."""


@dataclass(frozen=True)
class Extractor:
    """A feature space: configuration, network and digest of both."""

    config: ExtractorConfig
    network: Network
    digest: str

    @property
    def label(self) -> str:
        """Name and start of the digest, e.g. ``classifier-v1@1a2b3c4d``."""
        return f"{self.config.name}@{self.digest[:8]}"

    @torch.no_grad()
    def extract(self, pixels_NCHW: Tensor) -> Features:
        """Features of uint8 pixels, and their classes if the extractor has classes.

        Raises:
            DataError: the pixels have another type or shape than the extractor's.
        """
        if pixels_NCHW.dtype != torch.uint8 or pixels_NCHW.shape[1:] != self.config.spec.shape:
            raise DataError(
                f"features {self.label} expect uint8 pixels of {self.config.spec}, got {pixels_NCHW.dtype} "
                f"{tuple(pixels_NCHW.shape[1:])}"
            )
        features: list[Tensor] = []
        classes: list[Tensor] = []
        for pixels_BCHW in pixels_NCHW.split(_BATCH_ROWS):
            raw_BD = self.network.raw_BD(units.to_network(pixels_BCHW))
            features.append(raw_BD.to(torch.float64) * self.network.scale)
            classes_B = self.network.classes_B(raw_BD)
            if classes_B is not None:
                classes.append(classes_B)
        return Features(torch.cat(features), torch.cat(classes) if classes else None)


def fit_extractor(
    config: FeaturesConfig, spec: ImageSpec, pixels_NCHW: Tensor, labels_N: Tensor | None, seed: int
) -> Extractor:
    """Fit a feature space to real training images; a pure function of its arguments.

    Args:
        config: kind of the extractor and its training.
        spec: description of the images.
        pixels_NCHW: training images, uint8.
        labels_N: their labels, int64; None for data without labels.
        seed: seed of the run.

    Raises:
        DataError: the images have no labels, but the classifier needs them.
        TrainingDiverged: the loss of the classifier is not finite.
        ConfigError: the file of a net is missing, has another digest, or needs a package that is missing.
    """
    extractor = config.extractor(spec)
    if extractor.onnx is not None and config.onnx is not None:
        remedy = "name an ONNX file in evaluate.features.onnx.file"
        data = read_onnx(config.onnx)
        network = OnnxNetwork(data, extractor.onnx, config.onnx.file, remedy)
        return Extractor(extractor, network.eval(), _digest(extractor, data))
    with torch.random.fork_rng(devices=[]):
        high, low = philox_key(seed, "features/init")
        torch.manual_seed(high << 31 | low >> 1)
        network = extractor.build()
    if isinstance(network, Classifier):
        if labels_N is None:
            raise DataError(
                f"the training images of {spec.classes} classes have no labels; shard the data again, or "
                "set evaluate.features.kind to pca"
            )
        _fit_classifier(network, config, pixels_NCHW, labels_N, seed)
    elif isinstance(network, Pca):
        _fit_pca(network, pixels_NCHW)
    else:
        assert isinstance(network, RandomConvolutions)
        projected_ND = Extractor(extractor, network, "").extract(pixels_NCHW).features_ND
        network.mean_D.copy_(projected_ND.mean(0))
    network.eval().requires_grad_(False)
    raw_ND = Extractor(extractor, network, "").extract(pixels_NCHW).features_ND
    network.scale.copy_(raw_ND.square().mean().rsqrt())
    return Extractor(extractor, network, _digest(extractor, _weights(network)))


def _fit_classifier(
    network: Classifier, config: FeaturesConfig, pixels_NCHW: Tensor, labels_N: Tensor, seed: int
) -> None:
    rows, batch = len(pixels_NCHW), config.batch_images
    steps = max(1, config.train_images // batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=0.01)
    margin = max(1, max(pixels_NCHW.shape[2:]) // 14)
    network.train()
    for step in range(steps):
        # The rows of this step: each epoch is a permutation of its own.
        index_B = torch.arange(step * batch, (step + 1) * batch)
        row_B = torch.empty_like(index_B)
        for epoch in torch.unique(index_B // rows).tolist():
            in_epoch = index_B // rows == epoch
            purpose = f"features/epoch={epoch}"
            row_B[in_epoch] = shuffle(index_B[in_epoch] % rows, rows, seed, purpose)
        # Shift the images at random, then one step with a cosine learning rate.
        moves_B2 = rng_for(seed, "features/shift", index_B).integers(2 * margin + 1, 2)
        x_BCHW = units.to_network(shifted(pixels_NCHW[row_B], moves_B2, margin))
        loss = F.cross_entropy(network(x_BCHW), labels_N[row_B])
        if not math.isfinite(loss.item()):
            raise TrainingDiverged(
                f"features: the classifier's loss is {loss.item()} at step {step}"
            )
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def shifted(pixels_BCHW: Tensor, moves_B2: Tensor, margin: int) -> Tensor:
    """Translate each image by its own number of rows and columns; edge pixels are repeated.

    Args:
        pixels_BCHW: images.
        moves_B2: rows and columns, 0 .. 2 ``margin``; ``margin`` is no translation.
        margin: largest translation.
    """
    height, width = pixels_BCHW.shape[2:]
    row_BH = (torch.arange(height) + moves_B2[:, :1] - margin).clamp(0, height - 1)
    column_BW = (torch.arange(width) + moves_B2[:, 1:] - margin).clamp(0, width - 1)
    image_B = torch.arange(len(pixels_BCHW))[:, None, None]
    moved_BHWC = pixels_BCHW.permute(0, 2, 3, 1)[image_B, row_BH[:, :, None], column_BW[:, None, :]]
    return moved_BHWC.permute(0, 3, 1, 2)


def _fit_pca(network: Pca, pixels_NCHW: Tensor) -> None:
    blocks = [network.pooled_BP(units.to_network(b)) for b in pixels_NCHW.split(_BATCH_ROWS)]
    pooled_NP = torch.cat(blocks).to(torch.float64)
    mean_P = pooled_NP.mean(0)
    pooled_NP -= mean_P
    _, vectors_PP = torch.linalg.eigh(pooled_NP.T @ pooled_NP)
    leading_PD = vectors_PP.flip(1)[:, : network.components_PD.shape[1]]
    # An eigenvector's sign is arbitrary; its largest entry is made positive.
    largest_1D = leading_PD.abs().argmax(0, keepdim=True)
    leading_PD = leading_PD * leading_PD.gather(0, largest_1D).sign()
    network.mean_P.copy_(mean_P)
    network.components_PD.copy_(leading_PD)


def _weights(network: Network) -> bytes:
    if isinstance(network, OnnxNetwork):
        return network.data
    return tensor_bytes(network.state_dict())


def _digest(config: ExtractorConfig, weights: bytes) -> str:
    return fingerprint(config, storage.sha256(weights))


def save_extractor(extractor: Extractor, root: str) -> tuple[FileEntry, ...]:
    """Write configuration and weights below a root. The name of the weights' file contains their digest."""
    weights = _weights(extractor.network)
    config = canonical_json(extractor.config.model_dump(mode="json")) + b"\n"
    kind = "safetensors" if extractor.config.onnx is None else "onnx"
    name = f"weights-{storage.sha256(weights)[:12]}.{kind}"
    return write_file(root, _CONFIG_FILE, config), write_file(root, name, weights)


def load_extractor(root: str, net: OnnxConfig | None = None) -> Extractor:
    """Load the feature space in a folder.

    Args:
        root: the folder.
        net: the net that the recipe names; no other one is read.

    Raises:
        ConfigError: it is absent.
        DataError: a file is damaged.
    """
    manifest = require(Manifest, root, "features", "evaluate")
    config_data, where = read_listed(root, manifest, _CONFIG_FILE, _HINT), f"{root}/{_CONFIG_FILE}"
    config = parse_document(ExtractorConfig, config_data, "a feature space", where, _HINT)
    names = [e.path for e in manifest.files if _WEIGHTS_FILE.fullmatch(e.path)]
    if len(names) != 1:
        raise DataError(
            f"{root}: its manifest lists {len(names)} files of weights, not one; {_HINT}"
        )
    entry = next(entry for entry in manifest.files if entry.path == names[0])
    if config.onnx is not None:
        weights = read_named(root, entry, config.onnx, net, _HINT)
        network = OnnxNetwork(weights, config.onnx, f"{root}/{entry.path}", _HINT)
        return Extractor(config, network.eval(), _digest(config, weights))
    # The weights are compared with the network's shapes before they are read, and before it is allocated.
    with torch.random.fork_rng(devices=[]):
        with net_budget(where, _HINT), torch.device("meta"):
            shapes = config.build().state_dict()
        check_file_size(entry.size_bytes, shapes, f"{root}/{names[0]}", _HINT)
        weights = read_checked(root, entry, _HINT)
        tensors = parse_tensors(weights, shapes, f"{root}/{names[0]}", _HINT)
        network = config.build()
    network.load_state_dict(tensors)
    network.eval().requires_grad_(False)
    return Extractor(config, network, _digest(config, weights))
