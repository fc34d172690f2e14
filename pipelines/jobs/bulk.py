"""Bulk jobs (sampling, scoring): what they are, and the actors that do their work units.

Each job writes to its own folder. Each finished unit has a receipt there. The work left to do is the units
without one, so a job that is started again resumes. :mod:`pipelines.jobs.execution` runs them.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol

from cluster.actors import ModelActor, Task, TaskResult
from cluster.session import ClusterConfig
from genmod import receipts
from genmod.config import Config
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import ManifestT, check_same_class
from genmod.numerics import numeric_class
from genmod.receipts import ReceiptT
from genmod.stopwatch import ENCODE, READ, WRITE, Stopwatch, measured
from pipelines.jobs.progress import NO_PROGRESS, Progress


@dataclass(frozen=True)
class BulkOptions:
    """Options of an execution that do not change its results."""

    cluster: ClusterConfig = ClusterConfig()
    """The resources that an actor requests."""
    progress: Progress = NO_PROGRESS
    """Receives the images that are done, for each job that has work left."""
    connect: Callable[[], None] | None = None
    """Connects to Ray; called once, and only if there is work. None if Ray is connected already."""
    snapshot: ManifestSnapshot = field(default_factory=ManifestSnapshot)
    """The manifests that the command has read."""


DEFAULT = BulkOptions()
"""Ray is connected, and progress is ignored."""


@dataclass(frozen=True)
class WorkUnit:
    """The work that one actor does at a time: one file of a job."""

    name: str
    """Name of the file and of its receipt."""
    num_rows: int
    parameters: dict[str, Any]
    """JSON values from which the actor computes the unit."""


class Division(Protocol):
    """How the work of a job can be divided further, while it runs."""

    def next_units(self, receipts: Sequence[Any]) -> list[WorkUnit]:
        """The units after a wave, given its receipts in order; none if the job is complete."""
        ...

    def cost(self, unit: WorkUnit) -> float:
        """Work of a unit, relative to other units of the job."""
        ...

    def halves(self, unit: WorkUnit) -> list[WorkUnit]:
        """A unit in two parts; none if it cannot be divided."""
        ...

    def quarantined(self, unit: WorkUnit, reason: str) -> Any:
        """The receipt of a unit that cannot be done, all of whose rows are listed as missing."""
        ...

    def lacks_rows(self, receipt: Any) -> bool:
        """Whether rows of a unit are in quarantine."""
        ...

    def partial(self, receipts: Mapping[str, Any], names: Sequence[str]) -> Any:
        """The manifest of what is done before the first unit of a wave without a receipt."""
        ...


def _none(manifest: Any) -> int:
    return 0


@dataclass(frozen=True)
class BulkJob(Generic[ManifestT, ReceiptT]):
    """The work of one folder."""

    name: str
    title: str
    """Of its progress, e.g. ``sample vae``."""
    out_root: str
    kind: str
    fingerprint: str
    manifest: type[ManifestT]
    receipt: type[ReceiptT]
    units: Sequence[WorkUnit]
    """Of the first wave."""
    plan: Config
    """Everything else that the actors need."""
    inputs: Mapping[str, tuple[str, str]]
    """Name of an input -> its URL and digest."""
    finish: Callable[[Mapping[str, ReceiptT], ManifestT | None], ManifestT]
    """Builds the manifest from the receipts of all units by name, in order, and the manifest of ``first``."""
    first: BulkJob[ManifestT, ReceiptT] | None = None
    """A job that must be done before any unit of this one."""
    setup_task: WorkUnit | None = None
    """Work that one actor does before the others need its result; it has its own receipt."""
    division: Division | None = None
    """How the work is divided further; None if it has one wave of units that stay whole."""
    work: str | None = None
    """Fingerprint of claim and receipts, where several jobs share them; ``fingerprint`` if None."""
    section: str = ""
    """Of the recipe, ``sample`` or ``score``."""
    max_quarantined: int = 0
    """Rows that may be missing."""
    missing: Callable[[ManifestT], int] = _none
    """Number of rows that a manifest lists as missing."""
    missing_text: str = "rows are missing"
    """What is the matter with them."""

    @property
    def work_fingerprint(self) -> str:
        """Fingerprint of the claim and of the receipts."""
        return self.work or self.fingerprint


class WorkUnitActor(ModelActor):
    """Writes the units of several jobs. Units that have a receipt are skipped."""

    receipt: ClassVar[type[Any]]
    section: ClassVar[str]
    """Of the recipe, ``sample`` or ``score``."""

    def __init__(self, *, plans: Sequence[Any], **options: Any) -> None:
        super().__init__(**options)
        self.plans = plans
        self._numerics: dict[str, str] = {}

    @abstractmethod
    def write_unit(self, plan: Any, name: str, parameters: dict[str, Any]) -> Any:
        """Write the files of a unit and return its receipt."""

    def work_fingerprint(self, plan: Any) -> str:
        """Fingerprint of the receipts of a plan's units."""
        return str(plan.fingerprint)

    def numerics(self, plan: Any, shared: Sequence[str]) -> str:
        """The numeric class of this worker. ConfigError if the job is strict and has results of another one.

        Args:
            plan: of the job.
            shared: numeric classes of results of other jobs that this one shares.
        """
        if plan.out_root not in self._numerics:
            own = numeric_class(self.device)
            if plan.config.numerics == "strict":
                check_same_class(plan.out_root, own, shared, section=self.section)
            self._numerics[plan.out_root] = own
        return self._numerics[plan.out_root]

    def do(self, task: Task) -> TaskResult:
        """Write a unit and commit its receipt; a faster actor's receipt wins."""
        plan = self.plans[task["job"]]
        work = self.work_fingerprint(plan)
        watch, start_s = Stopwatch(), time.monotonic()
        with watch.running(ENCODE):
            with measured(READ):
                receipt = receipts.load_receipt(self.receipt, plan.out_root, task["unit"], work)
            if receipt is None:
                written = self.write_unit(plan, task["unit"], task["parameters"])
                with measured(WRITE):
                    receipt = receipts.commit(plan.out_root, task["unit"], written)
        metadata = {key: task[key] for key in ("job", "unit", "num_rows")}
        took = {"wall_s": time.monotonic() - start_s, "seconds": watch.seconds, "worker": self.name}
        return metadata | took | {"receipt": receipt.model_dump(mode="json")}
