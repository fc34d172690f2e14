"""The filters of a sampling job, in one of its workers: loads the classifier and the training rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor

from genmod.errors import ConfigError
from genmod.evaluation.memorised import row_source
from genmod.generation.filters import Filters
from genmod.interface.batch import Batch
from genmod.interface.model import GenerativeModel
from genmod.interface.snapshot import check_unchanged
from genmod.manifest import DatasetManifest, require
from genmod.metrics.copy_forms import LEAST_CLOSENESS, likeness
from genmod.metrics.features import load_extractor
from genmod.metrics.near_copies import CopySearch
from genmod.rng import rng_for
from pipelines.jobs.sample_plan import SamplePlan

FILTER_PURPOSE = "sample/filter"
"""RNG purpose of the likelihoods by which images are filtered."""


def load_filters(plan: SamplePlan, model: GenerativeModel, resources: ExitStack) -> Filters | None:
    """The filters of a plan; None if it has none.

    Args:
        plan: of the job.
        model: on its device.
        resources: receives what is closed when the worker ends.
    """
    config = plan.config.filters
    if not config.is_on:
        return None
    return Filters(
        config,
        _training_copies(plan, resources) if config.training_copies else None,
        _classifier(plan) if config.classifier else None,
        _likelihood(plan, model) if config.needs_likelihood else None,
        plan.mean_bits_per_dim,
    )


def _training_copies(plan: SamplePlan, resources: ExitStack) -> Callable[[Tensor], Tensor]:
    """Whether images have the form of a copy of some training row."""
    dataset = require(DatasetManifest, plan.data_root, "dataset", "shard")
    check_unchanged(plan.data_root, dataset, plan.data_digest)
    source = resources.enter_context(row_source(plan.data_root, dataset, "train"))
    search = CopySearch(source.pixels, source.rows)

    def is_copy(pixels_BCHW: Tensor) -> Tensor:
        found = likeness(search, pixels_BCHW)
        return found.is_copy_B & (found.closeness_B >= LEAST_CLOSENESS)

    return is_copy


def _classifier(plan: SamplePlan) -> Callable[[Tensor], Tensor]:
    """The classes that the classifier sees. ConfigError if the feature space has none."""
    extractor = load_extractor(plan.features_root)

    def classes_of(pixels_BCHW: Tensor) -> Tensor:
        classes_B = extractor.extract(pixels_BCHW).classes_N
        if classes_B is None:
            raise ConfigError(
                f"sample.filters.classifier: the feature space {extractor.label} has no classifier; set "
                "evaluate.features.kind=classifier, or turn the filter off"
            )
        return classes_B

    return classes_of


def _likelihood(plan: SamplePlan, model: GenerativeModel) -> Callable[[Batch], Tensor]:
    """Bits per dimension under the model that generated the images."""
    options, device = plan.score_options(), next(model.parameters()).device

    @torch.no_grad()
    def bits_of(batch: Batch) -> Tensor:
        batch = batch.to(device)
        rng = rng_for(plan.seed, FILTER_PURPOSE, batch.index_B)
        return model.log_prob(batch, rng, options).bits_per_dim(plan.spec).cpu()

    return bits_of
