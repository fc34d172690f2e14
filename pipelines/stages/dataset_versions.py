"""Versions of a dataset that grows: each has shards of its new rows and shares the others.

Version 1 is in the recipe's root. Version N is in ``retrain/vN`` below it, with everything made from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count

from cluster.session import wait_s
from genmod import storage
from genmod.config import as_json
from genmod.data.sharding.census_text import census_lines
from genmod.data.sharding.plan import DatasetPlan, ShardPlan, VersionOrigin, make_plan
from genmod.data.sharding.previous_version import load_previous_version
from genmod.errors import ConfigError, DataError
from genmod.manifest import MANIFEST_NAMES, DatasetManifest
from genmod.manifest.folders import VERSIONS_FOLDER
from pipelines.jobs.sharding import shard
from pipelines.recipe.context import Context
from pipelines.stages.version_plan import (
    DatasetVersion,
    NewRowsReason,
    plan_version,
    take_all,
)

NOTHING_NEW = "nothing new"
"""Status of a command whose source has no rows that the newest version lacks."""


WARM_REASON = "the same rows, from the weights of the champion"
"""Reason of a version that ``retrain.start: both`` adds."""

OnStart = Callable[[int, str], None]
"""Called with number and fingerprint of a version."""


def is_sharded(context: Context) -> bool:
    """Whether version 1 exists, so that the dataset can grow."""
    return context.snapshot.load(DatasetManifest, context.at("data"), "dataset") is not None


def versions(context: Context) -> list[DatasetVersion]:
    """Every published version, oldest first.

    Raises:
        ConfigError: there is none.
        DataError: a version was not made from an earlier one.
    """
    known = [DatasetVersion(1, context.recipe.root, context.dataset())]
    for name in storage.list_names(context.at(VERSIONS_FOLDER)):
        if match := re.fullmatch(r"v(\d{4,})", name):
            root = context.at(VERSIONS_FOLDER, name)
            data = context.snapshot.load(DatasetManifest, storage.join(root, "data"), "dataset")
            if data is not None:
                known.append(DatasetVersion(int(match[1]), root, data))
    known.sort(key=lambda version: version.number)
    digests = {known[0].data.digest}
    for version in known[1:]:
        if not {version.data.parents.get("dataset"), version.data.replaces} & digests:
            raise DataError(
                f"{version.root}/data was not made from an earlier version of {known[0].root}/data; "
                "remove that folder, or restore the version that it was made from"
            )
        digests.add(version.data.digest)
    return known


def _do_nothing(number: int, fingerprint: str) -> None:
    del number, fingerprint


def next_version(
    context: Context, reason: NewRowsReason = take_all
) -> tuple[Context, ShardPlan | None]:
    """Where the next version would be, and its plan; the newest and None if there are no new rows.

    Writes nothing.
    """
    newest = versions(context)[-1]
    plan, is_needed = plan_version(context, newest, reason)
    if not is_needed:
        return context.with_root(newest.root), None
    _, root = next_root(context, newest.number + 1, plan.fingerprint)
    return context.with_root(root), plan.summary()


def append_version(
    context: Context, reason: NewRowsReason = take_all, on_start: OnStart = _do_nothing
) -> DatasetVersion | None:
    """Write the next version of the dataset, or finish writing it; None if there are no new rows.

    An unfinished version whose source has grown since stays unfinished; the next number is used.

    Args:
        context: of the command.
        reason: why new rows are taken.
        on_start: called before the version is written.
    """
    newest = versions(context)[-1]
    plan, is_needed = plan_version(context, newest, reason)
    return _append(context, newest, plan, on_start) if is_needed else None


def append_warm_version(context: Context, on_start: OnStart = _do_nothing) -> DatasetVersion | None:
    """Write the version of the same rows that is trained from the champion's weights, with ``start: both``.

    Args:
        context: of the command.
        on_start: called before the version is written.

    Returns:
        None if the newest version is one, or is the first.
    """
    newest = versions(context)[-1]
    if newest.number == 1 or newest.data.reason == WARM_REASON:
        return None
    parent = load_previous_version(storage.join(newest.root, "data"), newest.data)
    origin = VersionOrigin(
        number=newest.number + 1, reason=WARM_REASON, repeat=newest.data.repeat + 1
    )
    plan = make_plan(context.recipe.data, context.recipe.seed, parent, origin)
    return _append(context, newest, plan, on_start)


def _append(
    context: Context, newest: DatasetVersion, plan: DatasetPlan, on_start: OnStart
) -> DatasetVersion | None:
    """Write a planned version; None if it has nothing that the newest version lacks."""
    recipe = context.recipe
    for line in census_lines(plan.census):
        context.progress.log(f"  {line}")
    number, root = next_root(context, newest.number + 1, plan.fingerprint)
    data_root, parent_root = storage.join(root, "data"), storage.join(newest.root, "data")
    inputs = {"parent": (parent_root, newest.data.digest)}
    context.progress.log(f"  version {number}: {plan.origin.reason if plan.origin else 'new rows'}")
    on_start(number, plan.fingerprint)
    params = as_json(recipe.data)
    run = context.tracker.run("shard", f"data v{number}", plan.fingerprint, params, inputs)
    context.connect()
    data = shard(
        recipe.data,
        data_root,
        seed=recipe.seed,
        wait_s=wait_s(recipe.cluster),
        progress=context.progress,
        plan=plan,
    )
    assert data is not None, "the plan had shards"
    context.snapshot.add(data_root, data)
    run.log_artifact(storage.join(data_root, MANIFEST_NAMES["dataset"]))
    run.finish("FINISHED", {"digest": data.digest, "root": data_root})
    version = DatasetVersion(number, root, data)
    return version if version.is_news(newest) else None


def next_root(context: Context, first: int, fingerprint: str) -> tuple[int, str]:
    """Number and root of the first version, from ``first`` on, that is free or is this very work."""
    for number in count(first):
        root = context.at(VERSIONS_FOLDER, f"v{number:04d}")
        data_root = storage.join(root, "data")
        try:
            context.snapshot.find_done(DatasetManifest, data_root, "dataset", fingerprint)
        except ConfigError:
            continue
        return number, root
    raise AssertionError
