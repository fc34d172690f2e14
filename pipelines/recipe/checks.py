"""Checks before any work: the whole recipe against its dataset, which exists or is planned."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from genmod.data.order.training_order import check_order
from genmod.data.sharding.plan import ShardPlan
from genmod.errors import ConfigError
from genmod.generation.labels import label_request
from genmod.interface.model import DataStats, GenerativeModel
from genmod.interface.registry import ModelConfig, family
from genmod.manifest import SPLITS, DatasetManifest, ImageSpec
from genmod.training.job import check_rows
from pipelines.recipe.context import Context, model_config
from pipelines.recipe.selection import is_scorable


@dataclass(frozen=True)
class Data:
    """The properties of a dataset that models must fit, whether it exists or is planned."""

    spec: ImageSpec
    rows: Mapping[str, int]
    """Rows of each split; of a planned dataset, at most."""
    class_names: tuple[str, ...]
    manifest: DatasetManifest | None
    """None for a planned dataset."""
    empty_classes: tuple[int, ...] = ()
    """Numbers of the classes without training rows."""

    @classmethod
    def of(cls, manifest: DatasetManifest) -> Data:
        """The properties of a dataset that exists."""
        rows = {split: manifest.rows(split) for split in SPLITS}
        return cls(
            manifest.spec, rows, manifest.class_names, manifest, manifest.empty_classes("train")
        )

    @classmethod
    def planned(cls, plan: ShardPlan) -> Data:
        """The properties of a dataset that is planned."""
        return cls(plan.spec, plan.all_rows_by_split, plan.class_names, None, plan.empty_classes)


def data_of(context: Context) -> Data:
    """The recipe's dataset if it exists, else its plan from the source. Writes nothing."""
    manifest = context.snapshot.load(DatasetManifest, context.at("data"), "dataset")
    if manifest is not None:
        return Data.of(manifest)
    return Data.planned(context.dataset_plan.summary())


def check_recipe(
    context: Context, data: Data, stages: Collection[str]
) -> dict[str, GenerativeModel]:
    """Check before the first stage starts everything that a later stage would refuse.

    Args:
        context: the command.
        data: the dataset of its models.
        stages: names of those that will run.

    Returns:
        The selected models by name, with new weights.

    Raises:
        ConfigError: a model, its settings and the data do not fit together.
        DataError: a split that is needed has no rows.
    """
    recipe = context.recipe
    models = {name: planned_model(context, name, data) for name in context.models}
    # Each model's own settings, then what the stages need of the data.
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
        label_request(recipe.sample.labels, data.spec, data.class_names, data.empty_classes)
    scored = "score" in stages and any(is_scorable(context, name) for name in models)
    scores_own_data = recipe.score.data is None
    if scored and scores_own_data and not data.rows[recipe.score.split]:
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
    minimum = config.neighbours + 2
    available = {
        "samples (sample.count)": context.recipe.sample.count,
        "training images": data.rows["train"],
        f"reference images (split {config.reference})": data.rows[config.reference],
    }
    for description, rows in available.items():
        if rows < minimum:
            raise ConfigError(
                f"evaluate needs at least {minimum} {description} for evaluate.neighbours="
                f"{config.neighbours}, got {rows}; provide more, or set evaluate.neighbours lower"
            )


def planned_model(context: Context, name: str, data: Data) -> GenerativeModel:
    """The model with new weights; with placeholder statistics if the dataset is planned."""
    if data.manifest is not None:
        return model_config(context.recipe, name, data.manifest).build(context.recipe.seed)
    entry = context.recipe.entry(name)
    channels = data.spec.channels
    stats = DataStats(mean=(0.0,) * channels, std=(0.5,) * channels)
    config = ModelConfig(family=entry.family, net=entry.net, spec=data.spec, stats=stats)
    return config.build(context.recipe.seed)
