"""Writes the cards of synthetic datasets, at the end of sampling and of evaluating."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from genmod import storage
from genmod.generation.card import CARD, CardSource, dataset_card
from genmod.manifest import DatasetManifest, Manifest
from genmod.metrics.protocol import MetricValue
from pipelines.jobs.sample_plan import SamplePlan
from pipelines.recipe.context import Context


def write_card(
    context: Context,
    name: str,
    root: str,
    manifest: DatasetManifest,
    *,
    model_root: str,
    metrics: Sequence[MetricValue] = (),
) -> None:
    """Write the card of a synthetic dataset next to its manifest.

    Args:
        context: of the command.
        name: of the model in the recipe.
        root: URL of the dataset.
        manifest: of the dataset.
        model_root: URL of the model's folder.
        metrics: of an evaluation of these samples.
    """
    recipe = context.recipe
    suffix = recipe.sample.encoding.suffix
    model = context.snapshot.load(Manifest, model_root, "model")
    parents = {} if model is None else model.parents
    source = CardSource(
        title=f"{storage.join(recipe.root, '').rstrip('/').rpartition('/')[2]}: samples of {name}",
        licence=recipe.sample.licence,
        training_data=parents.get("data", parents.get("dataset", "")),
        regenerate=f"genmod sample --recipe RECIPE --model {shlex.quote(name)} --index N --out image{suffix}",
    )
    text = dataset_card(manifest, source, metrics)
    storage.write_bytes(storage.join(root, CARD), text.encode())


def write_plan_card(context: Context, plan: SamplePlan) -> None:
    """Write the card of the dataset that a plan has made."""
    manifest = context.snapshot.dataset(plan.out_root, "sample")
    write_card(context, plan.name, plan.out_root, manifest, model_root=plan.model_root)
