"""What can be refused before any work: the whole recipe against the data as it is or will be."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from genmod.data.order.training_order import check_order
from genmod.data.sharding.plan import ShardPlan
from genmod.errors import ConfigError
from genmod.generation.synthetic import label_request
from genmod.interface.model import DataStats, GenerativeModel
from genmod.interface.registry import ModelConfig, family
from genmod.manifest import SPLITS, DatasetManifest, ImageSpec
from genmod.training.job import check_rows
from pipelines.recipe.context import Context, model_config
from pipelines.recipe.selection import is_scorable


@dataclass(frozen=True)
class Data:
    """What models of a dataset must fit, whether it is there or only planned."""

    spec: ImageSpec
    rows: Mapping[str, int]
    """Of each split; of a planned dataset, at most."""
    class_names: tuple[str, ...]
    manifest: DatasetManifest | None
    """None while the dataset is not there."""

    @classmethod
    def of(cls, manifest: DatasetManifest) -> Data:
        """A dataset that is there."""
        rows = {split: manifest.rows(split) for split in SPLITS}
        return cls(manifest.spec, rows, manifest.class_names, manifest)

    @classmethod
    def planned(cls, plan: ShardPlan) -> Data:
        """A dataset that is still to be made."""
        return cls(plan.spec, plan.rows_by_split, plan.class_names, None)


def data_of(context: Context) -> Data:
    """The recipe's dataset if it is there, else as its source would give it. Writes nothing."""
    manifest = context.snapshot.load(DatasetManifest, context.at("data"), "dataset")
    if manifest is not None:
        return Data.of(manifest)
    return Data.planned(context.dataset_plan.summary())


def check_recipe(
    context: Context, data: Data, stages: Collection[str]
) -> dict[str, GenerativeModel]:
    """Refuse what a later stage would refuse, before the first one begins.

    Args:
        context: the command.
        data: what its models are of.
        stages: that will run.

    Returns:
        The models of the command, new, by name.

    Raises:
        ConfigError: a model, its settings and the data do not go together.
        DataError: a split that is needed has no rows.
    """
    recipe = context.recipe
    models = {name: planned_model(context, name, data) for name in context.models}
    for name, model in models.items():
        entry, options = recipe.entry(name), recipe.sample_options(name)
        model_class = family(entry.family)
        config = model_class.Config.model_validate(entry.net)
        model_class.check_sampling(config, options, model.spec)
        if "train" in stages or "distill" in stages:
            config = recipe.train_config(name)
            check_rows(config, context.at("data"), data.rows)
            check_order(
                config.order.resolved(),
                "train",
                data.spec,
                data.class_names,
                context.snapshot,
            )
            config.check_phases(model.phases())
    if "sample" in stages:
        label_request(recipe.sample.labels, data.spec, data.class_names)
    scored = "score" in stages and any(is_scorable(context, name) for name in models)
    here = recipe.score.data is None
    if scored and here and not data.rows[recipe.score.split]:
        raise ConfigError(
            f"recipe: score.split is {recipe.score.split}, which has no rows; "
            f"raise data.splits.{recipe.score.split} or score another split"
        )
    calibration = recipe.score.calibration
    if scored and calibration is not None and data.rows[calibration.split] < 2:
        raise ConfigError(
            f"recipe: score.calibration.split is {calibration.split}, which has "
            f"{data.rows[calibration.split]} rows; raise data.splits.{calibration.split}, name another "
            "split, or set score.calibration=null"
        )
    if "evaluate" in stages:
        _check_evaluate(context, data)
    return models


def _check_evaluate(context: Context, data: Data) -> None:
    config = context.recipe.evaluate
    least = config.neighbours + 2
    there = {
        "samples (sample.count)": context.recipe.sample.count,
        "training images": data.rows["train"],
        f"reference images (split {config.reference})": data.rows[config.reference],
    }
    for what, rows in there.items():
        if rows < least:
            raise ConfigError(
                f"evaluate needs at least {least} {what} for evaluate.neighbours="
                f"{config.neighbours}, there are {rows}; give more, or fewer neighbours"
            )


def planned_model(context: Context, name: str, data: Data) -> GenerativeModel:
    """The model that would be trained, built; with stand-in statistics if the data is not there yet."""
    if data.manifest is not None:
        return model_config(context.recipe, name, data.manifest).build(context.recipe.seed)
    entry = context.recipe.entry(name)
    channels = data.spec.channels
    stats = DataStats(mean=(0.0,) * channels, std=(0.5,) * channels)
    config = ModelConfig(family=entry.family, net=entry.net, spec=data.spec, stats=stats)
    return config.build(context.recipe.seed)
