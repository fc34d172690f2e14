"""Versions of a dataset that grows: each has what is new in shards of its own, and shares the others.

Version 1 lies in the recipe's root. Version N lies in ``retrain/vN`` below it, with what was made of it.
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
from genmod.manifest import MANIFEST_NAMES, DatasetManifest, find_done, load_manifest
from pipelines.jobs.sharding import shard
from pipelines.recipe.context import Context

FOLDER = "retrain"

NOTHING_NEW = "nothing new"


@dataclass(frozen=True)
class Version:
    """A version of the dataset."""

    number: int
    root: str
    """URL of the folder that holds ``data`` and what was made of it."""
    data: DatasetManifest

    @property
    def rows(self) -> int:
        """Of all splits."""
        return sum(shard.rows for shard in self.data.shards)


def is_there(context: Context) -> bool:
    """Whether there is a version 1 that could grow."""
    return load_manifest(DatasetManifest, context.at("data"), "dataset") is not None


def versions(context: Context) -> list[Version]:
    """Every version whose dataset is there, oldest first."""
    found = [Version(1, context.recipe.root, context.dataset())]
    for name in storage.list_names(context.at(FOLDER)):
        if match := re.fullmatch(r"v(\d{4,})", name):
            root = context.at(FOLDER, name)
            data = load_manifest(DatasetManifest, storage.join(root, "data"), "dataset")
            if data is not None:
                found.append(Version(int(match[1]), root, data))
    return sorted(found, key=lambda version: version.number)


def at(context: Context, root: str) -> Context:
    """The same command on another root."""
    recipe = context.recipe.model_copy(update={"root": root})
    cycle = Context(recipe, context.models, context.progress)
    cycle.__dict__["tracker"] = context.tracker
    return cycle


def growth(context: Context, newest: Version) -> DatasetPlan:
    """The plan of what the source has and the newest version does not."""
    parent = load_previous_version(storage.join(newest.root, "data"), newest.data)
    return make_plan(context.recipe.data, context.recipe.seed, parent)


def next_version(context: Context) -> tuple[Context, ShardPlan | None]:
    """Where the next version would lie, and its plan; the newest and None if there is nothing new.

    Writes nothing.
    """
    newest = versions(context)[-1]
    plan = growth(context, newest)
    if not plan.shards:
        return at(context, newest.root), None
    _, root = free(context, newest.number + 1, plan.fingerprint)
    return at(context, root), plan.summary()


def grow(context: Context) -> Version | None:
    """Make the next version of the dataset, or finish making it; None if there is nothing new.

    A version that was begun and whose source has grown since is left behind.
    """
    recipe, newest = context.recipe, versions(context)[-1]
    plan = growth(context, newest)
    if not plan.shards:
        return None
    number, root = free(context, newest.number + 1, plan.fingerprint)
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
    run.log_artifact(storage.join(data_root, MANIFEST_NAMES["dataset"]))
    run.finish("FINISHED", {"digest": data.digest, "root": data_root})
    version = Version(number, root, data)
    return version if version.rows > newest.rows else None


def free(context: Context, first: int, fingerprint: str) -> tuple[int, str]:
    """Number and folder of the first version whose data is this work, or nobody's."""
    for number in count(first):
        root = context.at(FOLDER, f"v{number:04d}")
        try:
            find_done(DatasetManifest, storage.join(root, "data"), "dataset", fingerprint)
        except ConfigError:
            continue
        return number, root
    raise AssertionError
