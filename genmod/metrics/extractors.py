"""The feature extractors: a small classifier, principal components, random convolutions, a net of the user's.

Letters: B batch, C channels, H height, W width, D features, K classes, P pooled pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from genmod.config import Config
from genmod.manifest import ImageSpec
from genmod.metrics.onnx_file import OnnxSpace

FEATURES = 64
"""Most features D of an extractor."""

POOLED = 32
"""Principal components are of images that are average-pooled to at most this height and width."""


CALLED = "called"
"""Setting of a protocol with the name that papers have for the metric in this feature space, e.g. FID."""


class ExtractorConfig(Config):
    """An extractor without its weights: config.json of a features folder."""

    kind: Literal["classifier", "pca", "random_conv", "onnx"]
    version: Literal[1] = 1
    spec: ImageSpec
    onnx: OnnxSpace | None = Field(default=None, exclude_if=lambda space: space is None)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "classifier" and self.spec.classes < 1:
            raise ValueError("spec.classes: got 0, expected at least 1 for a classifier")
        if (self.kind == "onnx") != (self.onnx is not None):
            raise ValueError("onnx: expected for this kind, and for no other")
        return self

    @property
    def name(self) -> str:
        """Kind and version, e.g. ``classifier-v1``."""
        return f"{self.kind}-v{self.version}"

    @property
    def called(self) -> dict[str, str]:
        """Setting of a Fréchet distance's protocol: the name that it has in this space, if any."""
        return {CALLED: self.onnx.called} if self.onnx is not None and self.onnx.called else {}

    def build(self) -> Network:
        """A new network with weights from torch's global generator; of any kind but ``onnx``."""
        return NETWORKS[self.kind](self.spec)


class Network(nn.Module, ABC):
    """Maps images to raw features, and has the scale that normalises them."""

    scale: Tensor
    """Scalar; scaled features of the training images have a mean square of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    @abstractmethod
    def raw_BD(self, x_BCHW: Tensor) -> Tensor:
        """(B, D) unscaled features of images in [-1, 1]."""

    @abstractmethod
    def classes_B(self, raw_BD: Tensor) -> Tensor | None:
        """(B,) most likely classes by the raw features; None if the network has no classes."""


class Classifier(Network):
    """Strided convolutions down to about 4x4, then one hidden layer, whose outputs are the features."""

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        self.body, outputs = _strided_convolutions(spec)
        self.hidden = nn.Linear(outputs, FEATURES)
        self.head = nn.Linear(FEATURES, spec.classes)

    def raw_BD(self, x_BCHW: Tensor) -> Tensor:
        """The hidden layer after a SiLU, which leaves no feature dead as a ReLU may."""
        return F.silu(self.hidden(self.body(x_BCHW).flatten(1)))

    def classes_B(self, raw_BD: Tensor) -> Tensor:
        """The class with the largest logit."""
        return self.head(raw_BD).argmax(1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, K) logits of the classes."""
        return self.head(self.raw_BD(x_BCHW))


class Pca(Network):
    """Projection onto the leading principal components of pooled pixels, not whitened."""

    mean_P: Tensor
    components_PD: Tensor

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        height, width = min(spec.height, POOLED), min(spec.width, POOLED)
        self.size = height, width
        pixels = spec.channels * height * width
        self.register_buffer("mean_P", torch.zeros(pixels))
        self.register_buffer("components_PD", torch.zeros(pixels, min(FEATURES, pixels)))

    def pooled_BP(self, x_BCHW: Tensor) -> Tensor:
        """(B, P) pooled and flattened images."""
        return F.adaptive_avg_pool2d(x_BCHW, self.size).flatten(1)

    def raw_BD(self, x_BCHW: Tensor) -> Tensor:
        """Coordinates along the principal components."""
        return (self.pooled_BP(x_BCHW) - self.mean_P) @ self.components_PD

    def classes_B(self, raw_BD: Tensor) -> None:
        """None: principal components have no classes."""
        return


class RandomConvolutions(Network):
    """The classifier's convolutions with random weights, then a random projection about the training mean.

    Nothing is learned but mean and scale, so the space has no preference for the classes of the data.
    """

    mean_D: Tensor

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        self.body, outputs = _strided_convolutions(spec)
        self.projection = nn.Linear(outputs, FEATURES, bias=False)
        for module in (*self.body, self.projection):
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        self.register_buffer("mean_D", torch.zeros(FEATURES))

    def raw_BD(self, x_BCHW: Tensor) -> Tensor:
        """The projections without their mean over the training images."""
        return self.projection(self.body(x_BCHW).flatten(1)) - self.mean_D

    def classes_B(self, raw_BD: Tensor) -> None:
        """None: random convolutions have no classes."""
        return


def _strided_convolutions(spec: ImageSpec) -> tuple[nn.Sequential, int]:
    """Convolutions that halve an image until it is at most 4x4, and their number of outputs."""
    height, width_px = spec.height, spec.width
    layers: list[nn.Module] = []
    channels, width = spec.channels, 16
    while max(height, width_px) > 4:
        kernel = 3 if layers else 5
        layers += [nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2), nn.ReLU()]
        channels, width = width, min(2 * width, 64)
        height, width_px = -(-height // 2), -(-width_px // 2)
    return nn.Sequential(*layers), channels * height * width_px


NETWORKS: dict[str, type[Classifier] | type[Pca] | type[RandomConvolutions]] = {
    "classifier": Classifier,
    "pca": Pca,
    "random_conv": RandomConvolutions,
}
"""Kind of an extractor -> its network."""
