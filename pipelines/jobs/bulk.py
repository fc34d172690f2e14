"""Bulk jobs (sampling, scoring): several jobs, divided into work units, in one Ray Data execution.

Each job writes to its own folder. Each finished unit has a receipt there. The work left to do is the units
without one, so a job that is started again resumes. The job's manifest is published when all units are done.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Any, ClassVar, Generic

from cluster.actors import ModelActor, Task, TaskResult, run_actors
from cluster.resources import resource_request
from cluster.session import ClusterConfig
from genmod import receipts
from genmod.config import Config
from genmod.documents import validate
from genmod.errors import GenmodError, sanitize
from genmod.generation.synthetic import SampleConfig
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import ManifestT, claim, publish
from genmod.receipts import ReceiptT
from genmod.scoring.table import ScoreConfig
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


_REMEDY = "run the same command again to resume"

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
    plan: Config
    """Everything else that the actors need."""
    inputs: Mapping[str, tuple[str, str]]
    """Name of an input -> its URL and digest."""
    finish: Callable[[Sequence[ReceiptT], ManifestT | None], ManifestT]
    """Builds the manifest from the receipts of all units, in order, and the manifest of ``first``."""
    first: BulkJob[ManifestT, ReceiptT] | None = None
    """A job that must be done before any unit of this one."""
    setup_task: WorkUnit | None = None
    """Work that one actor does before the others need its result; it has its own receipt."""


class WorkUnitActor(ModelActor):
    """Writes the units of several jobs. Units that have a receipt are skipped."""

    receipt: ClassVar[type[Any]]

    def __init__(self, *, plans: Sequence[Any], **options: Any) -> None:
        super().__init__(**options)
        self.plans = plans

    @abstractmethod
    def write_unit(self, plan: Any, name: str, parameters: dict[str, Any]) -> Any:
        """Write the files of a unit and return its receipt."""

    def do(self, task: Task) -> TaskResult:
        """Write a unit and commit its receipt; a faster actor's receipt wins."""
        plan = self.plans[task["job"]]
        receipt = receipts.load_receipt(self.receipt, plan.out_root, task["unit"], plan.fingerprint)
        if receipt is None:
            written = self.write_unit(plan, task["unit"], task["parameters"])
            receipt = receipts.commit(plan.out_root, task["unit"], written)
        metadata = {key: task[key] for key in ("job", "unit", "num_rows")}
        return metadata | {"receipt": receipt.model_dump(mode="json")}


class _JobInProgress(Generic[ManifestT, ReceiptT]):
    """A job that is not finished, and the receipts that it has."""

    def __init__(self, job: BulkJob[ManifestT, ReceiptT], first: ManifestT | None) -> None:
        self.job = job
        self._first = first
        self._units = {unit.name: unit for unit in job.units}
        self._names = list(self._units)
        self._receipts = receipts.load_receipts(
            job.receipt, job.out_root, self._names, job.fingerprint
        )
        self.total_rows = sum(unit.num_rows for unit in job.units)
        self.done_rows = sum(unit.num_rows for unit in job.units if unit.name in self._receipts)

    def tasks(self, number: int) -> list[Task]:
        """The units without a receipt; ``number`` is the job's."""
        missing = [unit for unit in self.job.units if unit.name not in self._receipts]
        return [self._task(number, unit) for unit in missing]

    def setup_tasks(self, number: int) -> list[Task]:
        """The setup task, if several units wait for it."""
        setup_task = self.job.setup_task
        several = len(self._names) - len(self._receipts) > 1
        return [self._task(number, setup_task)] if setup_task is not None and several else []

    def _task(self, number: int, unit: WorkUnit) -> Task:
        return {
            "name": f"{self.job.name} {unit.name}",
            "job": number,
            "unit": unit.name,
            "num_rows": unit.num_rows,
            "parameters": unit.parameters,
        }

    def add(self, result: TaskResult) -> None:
        """Keep the receipt of a unit that an actor has written."""
        unit = self._units.get(str(result.get("unit")))
        if unit is None:
            got = sanitize(str(result.get("unit")))[:80]
            raise GenmodError(
                f"{self.job.title}: a worker returned {got!r}, no unit of it; {_REMEDY}"
            )
        where = f"the result of {self.job.title} {unit.name}"
        schema: type[Any] = self.job.receipt
        receipt = validate(schema, result.get("receipt"), "a receipt", where, _REMEDY)
        if receipt.fingerprint != self.job.fingerprint:
            raise GenmodError(f"{where} belongs to other work; {_REMEDY}")
        if unit.name not in self._receipts:
            self.done_rows += unit.num_rows
        self._receipts[unit.name] = receipt

    def publish_if_done(self) -> ManifestT | None:
        """Publish the manifest if every unit has a receipt; None if not."""
        if len(self._receipts) < len(self._names):
            return None
        manifest = self.job.finish([self._receipts[name] for name in self._names], self._first)
        return publish(self.job.out_root, manifest)


def _run_firsts(
    jobs: Mapping[int, BulkJob[ManifestT, ReceiptT]],
    actor: type[WorkUnitActor],
    config: SampleConfig | ScoreConfig,
    options: BulkOptions,
) -> dict[int, ManifestT]:
    """Run the jobs that must be done before these; their manifests, by the number of the job that waits."""
    firsts = {number: job.first for number, job in jobs.items() if job.first is not None}
    manifests = run_jobs([*firsts.values()], actor, config, options) if firsts else []
    return dict(zip(firsts, manifests, strict=True))


def run_jobs(
    jobs: Sequence[BulkJob[ManifestT, ReceiptT]],
    actor: type[WorkUnitActor],
    config: SampleConfig | ScoreConfig,
    options: BulkOptions,
) -> list[ManifestT]:
    """Run jobs and publish each. Finished jobs are skipped; interrupted jobs resume.

    The units of the jobs alternate, so that the rate is even and the time left can be estimated. The models
    of all jobs must fit on one device together.

    Raises:
        ConfigError: a folder contains other work; or no node of the cluster has room for one actor.
        GenmodError: units failed. All others are done and stay done.
    """
    snapshot = options.snapshot
    manifests: dict[int, ManifestT] = {}
    for number, job in enumerate(jobs):
        done = snapshot.find_done(job.manifest, job.out_root, job.kind, job.fingerprint)
        if done is not None:
            manifests[number] = done
        else:
            claim(job.out_root, job.fingerprint)
    unfinished = {number: job for number, job in enumerate(jobs) if number not in manifests}
    firsts = _run_firsts(unfinished, actor, config, options)
    in_progress = {
        number: _JobInProgress(job, firsts.get(number)) for number, job in unfinished.items()
    }

    # The units that are left, one of each job in turn. A job may lack only its manifest.
    turns = zip_longest(*(progress.tasks(number) for number, progress in in_progress.items()))
    tasks = [task for turn in turns for task in turn if task is not None]

    def report(number: int) -> None:
        """Report a job's progress; publish it once it is done."""
        job, state = jobs[number], in_progress[number]
        options.progress.update(job.title, state.done_rows, state.total_rows, "images")
        if (manifest := state.publish_if_done()) is not None:
            manifests[number] = snapshot.add(job.out_root, manifest)

    for number in in_progress:
        report(number)
    if tasks and options.connect is not None:
        options.connect()
    do = partial(
        run_actors,
        actor,
        workers=config.workers,
        resources=resource_request(config.device, options.cluster),
        deadline_s=config.deadline_s,
        plans=[job.plan for job in jobs],
    )
    setup_tasks = [t for number, state in in_progress.items() for t in state.setup_tasks(number)]
    if config.workers > 1:
        for _ in do(setup_tasks):
            pass
    for result in do(tasks):
        number = int(result["job"])
        in_progress[number].add(result)
        report(number)
    if lacking := [job.title for number, job in enumerate(jobs) if number not in manifests]:
        raise GenmodError(
            f"{', '.join(lacking)}: workers returned fewer results than units; {_REMEDY}"
        )
    return [manifests[number] for number in range(len(jobs))]
