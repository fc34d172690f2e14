"""Shared state of one command: recipe, selected models, progress, manifests, tracker, connection to Ray."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cluster import session
from cluster.metrics import RECORDER
from genmod import storage
from genmod.documents import validate
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig
from genmod.interface.snapshot import ManifestSnapshot
from genmod.lease import Lease
from genmod.manifest import DatasetManifest, Manifest
from genmod.storage.cache_folder import check_folder
from pipelines.recipe.progress import ProgressDisplay
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.time_left import duration
from pipelines.tracking.tracker import Tracker

if TYPE_CHECKING:
    from cluster.doctor.needs import NodeNeeds
    from genmod.data.sharding.plan import DatasetPlan

Result = dict[str, Any]
"""The JSON result of a stage: stage, status, output, fingerprint, and more values, which differ by stage."""

LEDGER_FOLDER = "promotions"
"""Default folder of the promotion ledger below the recipe's root."""

_BACKLOG = "genmod_tracking_backlog"
"""Metric of the calls to MLflow that wait."""

DONE = "done"
ALREADY_DONE = "already done"


@dataclass
class _Opened:
    """Things that a command opens once, on first use; all of its contexts share them."""

    root: str
    """URL of the command's own root: where an embedded tracking store is."""
    tracker: Tracker | None = None
    dataset_plan: DatasetPlan | None = None
    has_connected: bool = False
    """Whether the command has connected to Ray; one that its process had before stays as it is."""
    needs: NodeNeeds | None = None
    """What nodes must have, until they were checked."""


@dataclass(frozen=True)
class Context:
    """One command: its settings and the things that it has opened.

    :meth:`with_models`, :meth:`with_root` and :meth:`with_recipe` return contexts of the same command that
    share all else.
    """

    recipe: Recipe
    models: tuple[str, ...]
    """Names of the recipe's models that are selected."""
    progress: ProgressDisplay = field(default_factory=ProgressDisplay)
    snapshot: ManifestSnapshot = field(default_factory=ManifestSnapshot)
    """The manifests that the command has read."""
    lease: Lease | None = None
    """Held while the command works, if only one may work below the root."""
    _opened: _Opened = field(default_factory=lambda: _Opened(""))

    def __post_init__(self) -> None:
        for name in self.models:
            self.recipe.entry(name)
        self._opened.root = self._opened.root or self.recipe.root

    def with_models(self, models: tuple[str, ...]) -> Context:
        """The same command for these of the recipe's models."""
        return replace(self, models=models)

    def with_root(self, root: str) -> Context:
        """The same command with its results below another root. Tracking stays where it is."""
        return self.with_recipe(self.recipe.model_copy(update={"root": root}))

    def with_recipe(self, recipe: Recipe) -> Context:
        """The same command with another recipe. Tracking stays where it is."""
        return replace(self, recipe=recipe)

    @property
    def tracker(self) -> Tracker:
        """The MLflow tracker, which logs nothing if the recipe disables it. Opened on first use."""
        if self._opened.tracker is None:
            self._opened.tracker = tracker = Tracker(self.recipe.tracking, self._opened.root)
            RECORDER.watch(_BACKLOG, lambda: tracker.waiting)
        return self._opened.tracker

    @property
    def dataset_plan(self) -> DatasetPlan:
        """The plan of the shard stage. Lists the recipe's source, once a command."""
        from genmod.data.sharding.plan import make_plan

        if self._opened.dataset_plan is None:
            self._opened.dataset_plan = make_plan(self.recipe.data, self.recipe.seed)
        return self._opened.dataset_plan

    def connect(self) -> None:
        """Connect to Ray and log it, since it takes seconds. Called only if there is work."""
        if "ray" not in sys.modules or not self._is_connected():
            local = session.address_of(self.recipe.cluster) == session.LOCAL
            self.progress.log("  starting Ray" if local else "  connecting to Ray")
            self._opened.has_connected = True
        session.connect(self.recipe.cluster)
        needs, self._opened.needs = self._opened.needs, None
        if needs is not None and session.address_of(self.recipe.cluster) != session.LOCAL:
            from cluster.doctor.preflight import preflight

            preflight(needs)

    def require(self, needs: NodeNeeds) -> None:
        """Check the nodes of a cluster when the command connects to it, before it takes resources."""
        self._opened.needs = needs

    def _is_connected(self) -> bool:
        import ray

        return ray.is_initialized()

    def close(self) -> None:
        """Wait until the tracker has logged everything, and disconnect from Ray if the command connected."""
        if self._opened.tracker is not None:
            self._opened.tracker.close()
            RECORDER.unwatch(_BACKLOG)
        RECORDER.write(force=True)
        RECORDER.forget_work()
        if self._opened.has_connected:
            session.disconnect()

    @property
    def command_root(self) -> str:
        """URL of the command's own root, also where its results are below another one."""
        return self._opened.root

    def at(self, *parts: str) -> str:
        """URL of a folder or file below the root."""
        return self.recipe.at(*parts)

    def check_lease(self) -> None:
        """Raise LeaseLost if another process works below the root by now. Called before each step."""
        if self.lease is not None:
            self.lease.check()

    def create(self, url: str, data: bytes) -> bool:
        """Publish a decision or an entry of the ledger, if it does not exist; whether this call created it.

        Raises:
            LeaseLost: the command needs the lease, and another process has taken it over.
        """
        if self.lease is not None and storage.is_below(url, self._opened.root):
            return self.lease.create(url, data)
        self.check_lease()  # a ledger that recipes share: its chain alone lets one of several win
        return storage.create(url, data)

    @property
    def ledger_url(self) -> str:
        """URL of the promotion ledger: one for the command, also where its results are below another root."""
        url = self.recipe.promote.ledger
        return (
            storage.join(self._opened.root, LEDGER_FOLDER) if url is None else storage.resolve(url)
        )

    def output_at(self, folder: str, name: str) -> str:
        """URL of a model's folder in an output folder, which the recipe may place elsewhere."""
        return storage.join(storage.output_folder(self.recipe.root, folder), name)

    def dataset(self) -> DatasetManifest:
        """The manifest of the recipe's dataset. ConfigError if it does not exist."""
        return self.snapshot.dataset(self.at("data"), "shard, with the same --recipe and --set")

    def model_config(self, name: str, dataset: DatasetManifest) -> ModelConfig:
        """The configuration of a model of this dataset."""
        return model_config(self.recipe, name, dataset)

    def result(
        self, stage: str, start_s: float, worked: bool, output: str, manifest: Manifest, **more: Any
    ) -> Result:
        """Log that a stage is done, and return its result.

        Args:
            stage: its name.
            start_s: ``time.monotonic()`` when it started.
            worked: whether anything was left to do.
            output: URL of the folder that it wrote.
            manifest: of its output; the result has its fingerprint.
            **more: further values of the result.
        """
        status = DONE if worked else ALREADY_DONE
        took = f" in {duration(time.monotonic() - start_s)}" if worked else ""
        self.progress.log(f"{stage}: {status}{took}: {output}")
        return {
            "stage": stage,
            "status": status,
            "output": output,
            "fingerprint": manifest.fingerprint,
            **more,
        }


def configure_storage(recipe: Recipe) -> None:
    """Use the recipe's storage settings in this process; without a ``storage`` section, the environment's.

    Raises:
        ConfigError: the cache's folder on this machine holds other files, or cannot be used.
    """
    storage.configure(recipe.storage if "storage" in recipe.model_fields_set else None)
    if (cache := storage.settings().cache) is not None:
        check_folder(cache)


def model_config(recipe: Recipe, name: str, dataset: DatasetManifest) -> ModelConfig:
    """Everything that builds a recipe's model for a dataset."""
    entry = recipe.entry(name)
    return ModelConfig(
        family=entry.family, net=entry.net, spec=dataset.spec, stats=stats_of(dataset)
    )


def stats_of(dataset: DatasetManifest) -> DataStats:
    """The dataset's pixel statistics, as the shard stage measured them on the training split."""
    where, remedy = "the dataset's manifest", "remove its folder and run genmod shard again"
    stats: Any = dataset.metadata.get("stats")
    return validate(DataStats, stats, "one with pixel statistics", where, remedy)
