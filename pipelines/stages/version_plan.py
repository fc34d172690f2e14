"""The plan of a dataset's next version, and its reasons: new, removed and changed rows, new classes, time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from genmod import storage
from genmod.data.sharding.plan import DatasetPlan, VersionOrigin, make_plan
from genmod.data.sharding.previous_version import load_previous_version
from genmod.errors import ConfigError, DataError
from genmod.manifest import MANIFEST_NAMES, DatasetManifest
from pipelines.recipe.context import Context


@dataclass(frozen=True)
class DatasetVersion:
    """One version of the dataset."""

    number: int
    root: str
    """URL of the folder that contains ``data`` and what was made from it."""
    data: DatasetManifest

    @property
    def rows(self) -> int:
        """Rows of all splits."""
        return sum(shard.rows for shard in self.data.shards)

    def is_news(self, previous: DatasetVersion) -> bool:
        """Whether there is something to train on that the version before has not."""
        return self.rows > previous.rows or self.data.repeat > 0 or self.data.replaces is not None


NewRowsReason = Callable[[DatasetPlan, "DatasetVersion"], "str | None"]
"""Why new rows are a reason for a version, given its plan and the newest version: empty if they are one by
themselves; None: they wait."""


def take_all(plan: DatasetPlan, newest: DatasetVersion) -> str:
    """Any new rows are a reason for a version."""
    del plan, newest
    return ""


def plan_version(
    context: Context, newest: DatasetVersion, reason: NewRowsReason = take_all
) -> tuple[DatasetPlan, bool]:
    """The plan of the next version, and whether there is a reason for it.

    Rows are added; or the version contains what the source has now, if it lost or changed rows or has a new
    class, and the recipe says so; or, after ``retrain.max_age_days``, the same rows are a version again.

    Raises:
        ConfigError: a version with a new class would lack rows that the recipe keeps.
        DataError: the source has a new class that the recipe refuses, or lost one.
    """
    config, recipe = context.recipe.retrain, context.recipe
    parent = load_previous_version(storage.join(newest.root, "data"), newest.data)
    plan = make_plan(recipe.data, recipe.seed, parent)
    changes = _source_changes(plan, newest)
    if changes and config.source_changes == "keep":
        context.progress.log(
            f"  {changes}; they stay as they are (retrain.source_changes=rebuild makes a version of what the "
            "source has)"
        )
        changes = ""
    if found := _new_classes(context, plan, newest):
        changes = "; ".join([changes, found] if changes else [found])
    if changes:
        return _rebuilt(context, plan, newest, changes), True
    if plan.shards:
        found = reason(plan, newest)
        if found == "":
            return plan, True
        if found is not None:
            origin = VersionOrigin(number=newest.number + 1, reason=found)
            return make_plan(recipe.data, recipe.seed, parent, origin), True
    age_s = storage.age_s(storage.join(newest.root, "data", MANIFEST_NAMES["dataset"]))
    if config.max_age_days is None or age_s < config.max_age_days * 86_400:
        return plan, False
    origin = VersionOrigin(
        number=newest.number + 1,
        reason=f"{age_s / 86_400:.1f} days have passed since version {newest.number}",
        repeat=newest.data.repeat + 1,
    )
    return make_plan(recipe.data, recipe.seed, parent, origin), True


def _source_changes(plan: DatasetPlan, newest: DatasetVersion) -> str:
    """In words, what the source lost or changed of the newest version; empty if nothing is known."""
    if plan.lost:
        return f"{plan.lost:,} rows of version {newest.number} were removed from {plan.source}"
    if plan.is_changed:
        return f"content of {plan.source} changed since version {newest.number}"
    is_changed = plan.parents["source"] != newest.data.parents.get("source")
    if is_changed and not plan.shards and not plan.new_rejected and not plan.new_classes.rows:
        return f"content of {plan.source} changed since version {newest.number}"
    return ""


def _new_classes(context: Context, plan: DatasetPlan, newest: DatasetVersion) -> str:
    """In words, which classes are a reason to rewrite a version; empty if none is.

    Raises:
        ConfigError: the version would lack rows that the recipe keeps.
    """
    new, recipe = plan.new_classes, context.recipe
    if not new.rows or recipe.data.new_classes != "rebuild":
        return ""
    if plan.rows + new.rows < recipe.retrain.min_new_rows:
        context.progress.log(
            f"  {new}; its {new.rows:,} rows wait until there are "
            f"retrain.min_new_rows={recipe.retrain.min_new_rows:,}"
        )
        return ""
    if plan.lost and recipe.retrain.source_changes == "keep":
        raise ConfigError(
            f"{plan.source}: {new}, but a rewritten version (data.new_classes=rebuild) would lack "
            f"{plan.lost:,} rows of version {newest.number} that the source does not have any more; provide "
            "them too, or set retrain.source_changes=rebuild to leave them out"
        )
    return f"{new} with {new.rows:,} rows"


def _rebuilt(
    context: Context, plan: DatasetPlan, newest: DatasetVersion, changes: str
) -> DatasetPlan:
    """Plan a version of what the source has now, of which nothing is shared with the versions before.

    Raises:
        DataError: images or classes differ, and the recipe does not take new classes.
    """
    recipe, known = context.recipe, newest.data
    origin = VersionOrigin(
        number=newest.number + 1,
        reason=f"{changes}, {plan.rows:,} rows are new" if plan.rows else changes,
        replaces=known.digest,
    )
    takes_classes = recipe.data.new_classes == "rebuild"
    classes_of = known if recipe.data.new_classes == "ignore" else None
    rebuilt = make_plan(recipe.data, recipe.seed, origin=origin, classes_of=classes_of)
    if takes_classes and rebuilt.spec.classes >= known.spec.classes > 0:
        same = rebuilt.spec.model_copy(update={"classes": known.spec.classes}) == known.spec
        same = same and set(known.class_names) <= set(rebuilt.class_names)
    else:
        same = (rebuilt.spec, rebuilt.class_names) == (known.spec, known.class_names)
    if not same:
        raise DataError(
            f"{recipe.data.source}: without the rows that it lost, its images or classes are not those "
            "of the earlier versions; shard it under another root, or set retrain.source_changes=keep"
        )
    return rebuilt
