"""Checks before any work: the whole recipe against its dataset, which exists or is planned."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from genmod.data.order.training_order import check_order
from genmod.data.sharding.plan import ShardPlan
from genmod.errors import ConfigError, did_you_mean
from genmod.evaluation.likelihood import BITS_PER_DIM
from genmod.evaluation.measure import BETTER
from genmod.evaluation.policy import default_rules
from genmod.evaluation.rows_needed import least_rows, smallest_gain
from genmod.generation.request import resolve_request
from genmod.interface.model import DataStats, GenerativeModel
from genmod.interface.registry import ModelConfig, family
from genmod.manifest import SPLITS, DatasetManifest, ImageSpec, Manifest
from genmod.metrics.onnx_file import check_onnx, read_onnx
from genmod.metrics.onnx_net import require_runtime
from genmod.selftest import recorded
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
        resolve_request(recipe.sample, data.spec, data.class_names, data.empty_classes)
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
        check_evaluation(context, data)
    return models


def check_evaluation(context: Context, data: Data) -> None:
    """Check that there are rows to evaluate with, and that a net of features can be used.

    Raises:
        ConfigError: samples or images are too few; onnxruntime or the net is missing, or it is another one.
        DataError: the net's file is no ONNX model.
    """
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
    if (net := config.features.onnx) is not None:
        require_runtime()
        if context.snapshot.load(Manifest, context.at("features"), "features") is None:
            check_onnx(read_onnx(net), net.file, "export the net again")


def check_rules(context: Context, data: Data) -> None:
    """Check that the metrics of the gate's rules will be measured, on enough rows for the stated gains.

    Args:
        context: the command.
        data: the dataset whose rows decide.

    Raises:
        ConfigError: a rule names a metric that is not measured, or the reference split has fewer rows than
            the stated gain needs at best. Of a default rule, this is only logged.
    """
    recipe = context.recipe
    config, split = recipe.promote, recipe.evaluate.reference
    rows = min(data.rows[split], recipe.evaluate.images)
    default = default_rules()
    for name, rule in config.rules.items():
        if not rule.optional and (problem := _not_measured(context, data, name.partition("[")[0])):
            raise ConfigError(f"promote.rules.{name}: the metric is not measured: {problem}")
        needed = least_rows(name, config)
        if needed is None or needed <= rows:
            continue
        text = (
            f"promote.rules.{name}.improve_by={rule.improve_by:g} needs at least {needed:,} rows of split "
            f"{split}, got {rows:,}: fewer cannot show this gain"
        )
        if rule == default.get(name):
            context.progress.log(f"  note: {text}")
            continue
        gain = smallest_gain(name, config, rows)
        larger = (
            f", or set improve_by to {math.ceil(1000 * gain) / 1000:g}"
            if gain
            else ", or remove improve_by"
        )
        raise ConfigError(f"{text}; raise data.splits.{split} or evaluate.images{larger}")


def _not_measured(context: Context, data: Data, metric: str) -> str:
    """Why evaluations with this recipe do not measure a metric; empty if they do."""
    recipe = context.recipe
    if metric not in BETTER:
        return did_you_mean(metric, BETTER)
    if metric in _OF_LABELS and not data.spec.classes:
        return "the data has no labels; remove the rule, or set its optional"
    if metric == "utility" and recipe.evaluate.utility_images is None:
        return "set evaluate.utility_images"
    if metric != BITS_PER_DIM:
        return ""
    split = recipe.evaluate.reference
    if recipe.score.split != split or recipe.score.data is not None:
        return (
            f"it needs scores of the reference's rows; set score.split={split} and score.data=null"
        )
    without = [name for name in context.models if not is_scorable(context, name)]
    return f"{', '.join(without)} has no density; remove the rule" if without else ""


_OF_LABELS = frozenset({"class_balance", "class_coverage", "label_accuracy", "utility"})
"""Metrics that need labels."""


def planned_model(context: Context, name: str, data: Data) -> GenerativeModel:
    """The model with new weights; with placeholder statistics if the dataset is planned."""
    if data.manifest is not None:
        return model_config(context.recipe, name, data.manifest).build(context.recipe.seed)
    entry = context.recipe.entry(name)
    channels = data.spec.channels
    stats = DataStats(mean=(0.0,) * channels, std=(0.5,) * channels)
    config = ModelConfig(family=entry.family, net=entry.net, spec=data.spec, stats=stats)
    return config.build(context.recipe.seed)


def refuse_bad_policy(context: Context, data: Data) -> None:
    """Check the policy by the candidates of the self-test; log what is looser than the default.

    Raises:
        ConfigError: it promotes a candidate that it must refuse.
    """
    policy = context.recipe.promote
    recorded.check_policy(policy, labelled=data.spec.classes > 0)
    if found := recorded.loosened(policy):
        context.progress.log(f"  warning: looser than the default rules: {'; '.join(found)}")
