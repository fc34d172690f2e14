"""Versions of a dataset that grows: each has shards of its new rows and shares the others.

Version 1 is in the recipe's root. Version N is in ``retrain/vN`` below it, with everything made from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import count

from genmod import storage
from genmod.config import as_json
from genmod.data.sharding.plan import DatasetPlan, ShardPlan, make_plan
from genmod.data.sharding.previous_version import load_previous_version
from genmod.errors import ConfigError
from genmod.manifest import MANIFEST_NAMES, DatasetManifest
from pipelines.jobs.sharding import shard
from pipelines.recipe.context import Context

VERSIONS_FOLDER = "retrain"
"""Below the recipe's root: a folder for each version after the first."""

NOTHING_NEW = "nothing new"
"""Status of a command whose source has no rows that the newest version lacks."""


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


def is_sharded(context: Context) -> bool:
    """Whether version 1 exists, so that the dataset can grow."""
    return context.snapshot.load(DatasetManifest, context.at("data"), "dataset") is not None


def versions(context: Context) -> list[DatasetVersion]:
    """Every published version, oldest first. ConfigError if there is none."""
    known = [DatasetVersion(1, context.recipe.root, context.dataset())]
    for name in storage.list_names(context.at(VERSIONS_FOLDER)):
        if match := re.fullmatch(r"v(\d{4,})", name):
            root = context.at(VERSIONS_FOLDER, name)
            data = context.snapshot.load(DatasetManifest, storage.join(root, "data"), "dataset")
            if data is not None:
                known.append(DatasetVersion(int(match[1]), root, data))
    return sorted(known, key=lambda version: version.number)


def next_version(context: Context) -> tuple[Context, ShardPlan | None]:
    """Where the next version would be, and its plan; the newest and None if there are no new rows.

    Writes nothing.
    """
    newest = versions(context)[-1]
    plan = _plan_next(context, newest)
    if not plan.shards:
        return context.with_root(newest.root), None
    _, root = next_root(context, newest.number + 1, plan.fingerprint)
    return context.with_root(root), plan.summary()


def append_version(context: Context) -> DatasetVersion | None:
    """Write the next version of the dataset, or finish writing it; None if there are no new rows.

    An unfinished version whose source has grown since stays unfinished; the next number is used.
    """
    recipe, newest = context.recipe, versions(context)[-1]
    plan = _plan_next(context, newest)
    if not plan.shards:
        return None
    number, root = next_root(context, newest.number + 1, plan.fingerprint)
    data_root, parent_root = storage.join(root, "data"), storage.join(newest.root, "data")
    inputs = {"parent": (parent_root, newest.data.digest)}
    params = as_json(recipe.data)
    run = context.tracker.run("shard", f"data v{number}", plan.fingerprint, params, inputs)
    context.connect()
    data = shard(
        recipe.data,
        data_root,
        seed=recipe.seed,
        progress=context.progress,
        plan=plan,
    )
    assert data is not None, "the plan had shards"
    context.snapshot.add(data_root, data)
    run.log_artifact(storage.join(data_root, MANIFEST_NAMES["dataset"]))
    run.finish("FINISHED", {"digest": data.digest, "root": data_root})
    version = DatasetVersion(number, root, data)
    return version if version.rows > newest.rows else None


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


def _plan_next(context: Context, newest: DatasetVersion) -> DatasetPlan:
    """The plan of the source's rows that the newest version lacks."""
    parent = load_previous_version(storage.join(newest.root, "data"), newest.data)
    return make_plan(context.recipe.data, context.recipe.seed, parent)
