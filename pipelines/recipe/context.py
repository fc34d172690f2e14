"""What every stage is given: the recipe, which models, where to say progress, tracking, a way to Ray."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cluster import session
from genmod import storage
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.manifest import DatasetManifest, Manifest, require
from pipelines.recipe.progress import ProgressDisplay
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.time_left import duration
from pipelines.tracking.tracker import Tracker

if TYPE_CHECKING:
    from genmod.data.sharding.plan import DatasetPlan

Result = dict[str, Any]
"""A stage's answer: stage, status, output, fingerprint, and what else it wants to say."""

DONE = "done"
ALREADY = "already done"


@dataclass
class Context:
    """One command at work."""

    recipe: Recipe
    models: tuple[str, ...]
    """Names of the recipe's models that the command is about."""
    progress: ProgressDisplay = field(default_factory=ProgressDisplay)

    def __post_init__(self) -> None:
        if "storage" in self.recipe.model_fields_set:
            os.environ.update(storage.environment_of(self.recipe.storage))
        for name in self.models:
            self.recipe.entry(name)

    @cached_property
    def tracker(self) -> Tracker:
        """MLflow, or nothing if the recipe says so. Opened when it is first asked for."""
        return Tracker(self.recipe.tracking, self.recipe.root)

    @cached_property
    def dataset_plan(self) -> DatasetPlan:
        """What sharding the recipe's source comes to. Lists the source, once a command."""
        from genmod.data.sharding.plan import make_plan

        return make_plan(self.recipe.data, self.recipe.seed)

    def connect(self) -> None:
        """Connect to Ray, when there is work for it. Says so, since it takes seconds."""
        if "ray" not in sys.modules or not self._connected():
            self.progress.log("  starting Ray" if self._local() else "  connecting to Ray")
        session.connect(self.recipe.cluster)

    def _connected(self) -> bool:
        import ray

        return ray.is_initialized()

    def _local(self) -> bool:
        return session.address_of(self.recipe.cluster) == session.LOCAL

    def close(self) -> None:
        """Let tracking finish, leave Ray."""
        if "tracker" in self.__dict__:
            self.tracker.close()
        if "ray" in sys.modules:
            session.disconnect()

    def at(self, *parts: str) -> str:
        """URL of something below the root."""
        return self.recipe.at(*parts)

    def dataset(self) -> DatasetManifest:
        """The recipe's dataset, which must be there."""
        return require(
            DatasetManifest, self.at("data"), "dataset", "shard, with the same --recipe and --set"
        )

    def model_config(self, name: str, dataset: DatasetManifest) -> ModelConfig:
        """The configuration of a model of this dataset."""
        return model_config(self.recipe, name, dataset)

    def counter(self, what: str, unit: str) -> Callable[[int, int], None]:
        """A callback (done, total) that shows progress."""
        return lambda done, total: self.progress.update(what, done, total, unit)

    def result(
        self, stage: str, start_s: float, made: bool, output: str, manifest: Manifest, **more: Any
    ) -> Result:
        """Say on stderr that a stage is done, and make its answer."""
        status = DONE if made else ALREADY
        took = f" in {duration(time.monotonic() - start_s)}" if made else ""
        self.progress.log(f"{stage}: {status}{took}: {output}")
        return {
            "stage": stage,
            "status": status,
            "output": output,
            "fingerprint": manifest.fingerprint,
            **more,
        }


def model_config(recipe: Recipe, name: str, dataset: DatasetManifest) -> ModelConfig:
    """Everything that builds a recipe's model for a dataset."""
    entry = recipe.entry(name)
    return ModelConfig(
        family=entry.family, net=entry.net, spec=dataset.spec, stats=stats_of(dataset)
    )


def stats_of(dataset: DatasetManifest) -> DataStats:
    """The dataset's pixel statistics, as the shard stage measured them on the training split."""
    stats: Mapping[str, Any] = dataset.metadata["stats"]
    return DataStats(mean=tuple(stats["mean"]), std=tuple(stats["std"]))
