"""Quality against effort: the same model sampled with few and with many calls of its net.

Letters: N rows, B batch.
"""

from __future__ import annotations

from typing import Any

import torch

from genmod import units
from genmod.config import parse
from genmod.errors import ConfigError
from genmod.evaluation.measure import Truth
from genmod.interface.model_store import load_model
from genmod.manifest import Manifest, require
from genmod.metrics.frechet import covariance_root, feature_moments, frechet
from genmod.rng import rng_for

BATCH = 100
"""Images that are made together."""


def quality_curve(
    model_root: str, model_digest: str, sample: dict[str, Any], truth: Truth
) -> list[dict[str, Any]]:
    """The Fréchet distance of ``truth.config.curve_images`` samples at each rung of the model's ladder.

    All rungs start from the same noise, and labels are dealt out in turn. With as many images everywhere,
    points can be compared with one another, not with the report's other distances.

    Args:
        model_root: URL of the model.
        model_digest: that it must have.
        sample: the recipe's sampling options, which rungs differ from in solver and steps.
        truth: what samples are compared with.

    Returns:
        for each rung ``curve``, ``nfe`` and ``fd``; nothing if the model has no ladder.
    """
    found = require(Manifest, model_root, "model", "train").digest
    if found != model_digest:
        raise ConfigError(
            f"{model_root} holds model {found[:12]}, the samples are of {model_digest[:12]}; make them again"
        )
    model = load_model(model_root)
    nfe_sweep = parse(model.Sample, sample, "sample").nfe_sweep()
    real = feature_moments(truth.extractor.extract(truth.reference.pixels_NCHW).features_ND)
    root_DD = covariance_root(real.cov_DD)
    points: list[dict[str, Any]] = []
    images = truth.config.curve_images
    assert images is not None
    for curve, nfe, options in nfe_sweep:
        made: list[torch.Tensor] = []
        for first in range(0, images, BATCH):
            last = min(first + BATCH, images)
            rng = rng_for(truth.seed, "evaluate/curve", range(first, last))
            labels_B = rng.index_B % model.spec.classes if model.spec.classes else None
            made.append(units.to_pixels(model.sample(labels_B, rng, options)))
        features_ND = truth.extractor.extract(torch.cat(made)).features_ND
        points.append(
            {"curve": curve, "nfe": nfe, "fd": frechet(real, feature_moments(features_ND), root_DD)}
        )
    return points
