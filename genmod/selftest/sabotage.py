"""Candidates that the gate must refuse, made of real images and the samples of a good model.

Each is as good as the good model except for one fault. Letters: N samples, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from genmod.evaluation.images import Images, uniform_noise
from genmod.manifest import ImageSpec
from genmod.metrics.features import shifted
from genmod.rng import Rng, rng_for

COPIES = frozenset({"memorisation"})
"""Metrics that may refuse a candidate because it repeats training images."""

NOT_REAL = frozenset({"fd", "kid", "precision", "density", "clipped_density", "c2st"})
"""Metrics that may refuse images that do not look real."""

TOO_FEW = frozenset(
    {"coverage", "clipped_coverage", "recall", "fd", "kid", "class_balance", "c2st"}
)
"""Metrics that may refuse a model that makes a part of the data only."""

REPEATED = frozenset({"duplicates", "support_size"})
"""Metrics that may refuse a model that makes few different images."""


OF_LABELS = frozenset({"class_balance", "class_coverage", "label_accuracy"})
"""Metrics that need labels."""

SHOWN_BY_LABELS = frozenset({"one class missing", "labels permuted"})
"""Candidates whose fault nothing shows in data without labels, if their images are better otherwise."""


@dataclass(frozen=True)
class Candidate:
    """Samples with a fault, and the metrics of which at least one must refuse them."""

    name: str
    images: Images
    metrics: frozenset[str]


@dataclass(frozen=True)
class Material:
    """What candidates are made of; no image is in two of the sets."""

    train: Images
    """Real images that models were trained on."""
    test: Images
    """Real images that samples are compared with."""
    good: Images
    """Samples of a good model, with the labels that were asked for."""
    early: Images
    """Samples of the champion after a small part of its training, of the same labels."""
    spec: ImageSpec
    seed: int = 0

    def rng(self, purpose: str) -> Rng:
        """Random numbers of each sample."""
        return rng_for(self.seed, f"selftest/{purpose}", range(len(self.good)))


def sabotaged(material: Material) -> Iterator[Candidate]:
    """All candidates, one after the other."""
    good, count = material.good, len(material.good)
    replay = by_label(material.train, good.labels_N)
    yield Candidate("training images", replay, COPIES)
    yield Candidate("training images with noise", _pixels(replay, _noisy(material, replay)), COPIES)
    yield Candidate("training images shifted by a pixel", _pixels(replay, _moved(replay)), COPIES)
    flipped_NCHW = replay.pixels_NCHW.flip(3)
    yield Candidate("training images mirrored", _pixels(replay, flipped_NCHW), COPIES)
    planted = good.pixels_NCHW.clone()
    copies = max(1, count // 1_000)
    planted[:copies] = replay.pixels_NCHW[:copies]
    yield Candidate("one training image among 1,000", _pixels(good, planted), COPIES)
    yield Candidate("test images", by_label(material.test, good.labels_N), frozenset({"leakage"}))
    yield from _collapsed(material)
    yield from _spoilt(material)
    yield Candidate("an early checkpoint", material.early, NOT_REAL | TOO_FEW)


def by_label(images: Images, labels_N: Tensor | None) -> Images:
    """Images of the requested classes in turn, each once before any is repeated."""
    assert labels_N is not None
    assert images.labels_N is not None
    row_N = torch.empty_like(labels_N)
    for label in labels_N.unique().tolist():
        own = (images.labels_N == label).nonzero()[:, 0]
        places = (labels_N == label).nonzero()[:, 0]
        row_N[places] = own[torch.arange(len(places)) % len(own)]
    return Images(images.pixels_NCHW[row_N], labels_N)


def _collapsed(material: Material) -> Iterator[Candidate]:
    """Models that make a part of the data only."""
    good = material.good
    assert good.labels_N is not None
    missing = good.labels_N == 3
    others = (~missing).nonzero()[:, 0]
    row_N = torch.arange(len(good))
    row_N[missing] = others[torch.arange(int(missing.sum())) % len(others)]
    labelled = TOO_FEW | {"label_accuracy", "class_coverage"}
    yield Candidate("one class missing", _pixels(good, good.pixels_NCHW[row_N]), labelled)
    only = missing.nonzero()[:, 0][torch.arange(len(good)) % int(missing.sum())]
    yield Candidate("one class only", _pixels(good, good.pixels_NCHW[only]), labelled | REPEATED)
    same = torch.zeros(len(good), dtype=torch.int64)
    yield Candidate(
        "one image repeated", _pixels(good, good.pixels_NCHW[same]), labelled | REPEATED
    )


def _spoilt(material: Material) -> Iterator[Candidate]:
    """Images or labels that are wrong."""
    good, spec = material.good, material.spec
    assert good.labels_N is not None
    permuted_N = (good.labels_N + 1) % spec.classes
    order = torch.argsort(permuted_N, stable=True)
    back = torch.argsort(torch.argsort(good.labels_N, stable=True), stable=True)
    wrong = good.pixels_NCHW[order][back]
    yield Candidate(
        "labels permuted", _pixels(good, wrong), frozenset({"label_accuracy", "utility"})
    )
    yield Candidate("blurred", _pixels(good, _blurred(good.pixels_NCHW)), NOT_REAL)
    yield Candidate("inverted", _pixels(good, 255 - good.pixels_NCHW), NOT_REAL)
    grey_NCHW = torch.full_like(good.pixels_NCHW, 128)
    yield Candidate("constant", _pixels(good, grey_NCHW), NOT_REAL | TOO_FEW | REPEATED)
    noise = uniform_noise(len(good), spec, material.seed)
    yield Candidate("noise", _pixels(good, noise.pixels_NCHW), NOT_REAL | TOO_FEW)


def _pixels(images: Images, pixels_NCHW: Tensor) -> Images:
    return Images(pixels_NCHW, images.labels_N)


def _noisy(material: Material, images: Images) -> Tensor:
    noise_NCHW = material.rng("noise").normal(*material.spec.shape)
    return (images.pixels_NCHW + 8 * noise_NCHW).round().clamp(0, 255).to(torch.uint8)


def _moved(images: Images) -> Tensor:
    """Each image shifted by one pixel, in one of four directions in turn."""
    moves_42 = torch.tensor([[0, 1], [2, 1], [1, 0], [1, 2]])
    return shifted(images.pixels_NCHW, moves_42[torch.arange(len(images)) % 4], 1)


def _blurred(pixels_NCHW: Tensor) -> Tensor:
    x_NCHW = F.pad(pixels_NCHW.to(torch.float32), (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(x_NCHW, 3, stride=1).round().to(torch.uint8)
