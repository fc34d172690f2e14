"""Quality against NFE, the number of network evaluations: one model sampled with few and with many.

Letters: N rows, B batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genmod import units
from genmod.config import parse
from genmod.errors import ConfigError
from genmod.evaluation.meter import Reference
from genmod.interface.model_store import load_model
from genmod.manifest import Manifest, require
from genmod.metrics.chance import shares_differ
from genmod.metrics.frechet import covariance_root, feature_moments, frechet
from genmod.rng import rng_for

_BATCH_ROWS = 100
"""Images that are sampled together."""


def quality_curve(
    model_root: str,
    model_digest: str,
    sample: dict[str, Any],
    reference: Reference,
    real_labels_N: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Fréchet distance of ``reference.config.curve_images`` samples at each point of the model's NFE sweep.

    All points start from the same noise, with labels in the shares of the reference. They have equally many
    images, so they can be compared with one another, but not with the report's other distances.

    Args:
        model_root: URL of the model.
        model_digest: digest that its manifest must have.
        sample: the recipe's sampling options; the points differ from them in solver and steps.
        reference: real images to compare with.
        real_labels_N: their classes by the model's numbers, -1 for a class that it lacks; None without
            labels.

    Returns:
        for each point ``curve``, ``nfe`` and ``fd``; empty if the options have no sweep.

    Raises:
        ConfigError: the model is not the one that made the samples.
    """
    digest = require(Manifest, model_root, "model", "train").digest
    if digest != model_digest:
        raise ConfigError(
            f"{model_root} has model {digest[:12]}, but the samples are of {model_digest[:12]}; sample again"
        )
    model = load_model(model_root)
    nfe_sweep = parse(model.Sample, sample, "sample").nfe_sweep()
    real = feature_moments(reference.extractor.extract(reference.images.pixels_NCHW).features_ND)
    root_DD = covariance_root(real.cov_DD)
    if real_labels_N is not None:
        real_labels_N = real_labels_N[real_labels_N >= 0]
    points: list[dict[str, Any]] = []
    images = reference.config.curve_images
    assert images is not None
    for curve, nfe, options in nfe_sweep:
        pixels: list[torch.Tensor] = []
        for first in range(0, images, _BATCH_ROWS):
            last = min(first + _BATCH_ROWS, images)
            rng = rng_for(reference.seed, "evaluate/curve", range(first, last))
            labels_B = _labels(rng.index_B, model.spec.classes, real_labels_N)
            pixels.append(units.to_pixels(model.sample(labels_B, rng, options)))
        features_ND = reference.extractor.extract(torch.cat(pixels)).features_ND
        points.append(
            {"curve": curve, "nfe": nfe, "fd": frechet(real, feature_moments(features_ND), root_DD)}
        )
    return points


def _labels(index_B: Tensor, classes: int, real_N: Tensor | None) -> Tensor | None:
    """Labels in turn; those of the reference if its shares are not equal."""
    if not classes:
        return None
    if real_N is not None and len(real_N) and int(real_N.max()) < classes:
        even_K = torch.arange(len(real_N)).remainder(classes).bincount(minlength=classes)
        if shares_differ(even_K, real_N.bincount(minlength=classes)):
            return real_N[index_B % len(real_N)]
    return index_B % classes
