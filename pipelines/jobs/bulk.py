"""What bulk sampling and bulk scoring share: several jobs, cut into pieces, in one Ray Data execution.

A job has a folder of its own. Each of its pieces ends with a receipt there; the work is the pieces without
one, so starting a job again goes on where it was. Its manifest is published when the last piece is done.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any, ClassVar, Generic, TypeVar

from cluster.actors import ModelActor, Task, TaskResult, run
from cluster.resources import resource_request
from cluster.session import ClusterConfig
from genmod import receipts
from genmod.config import Config
from genmod.generation.synthetic import SampleConfig
from genmod.manifest import Manifest, claim, find_done, publish
from genmod.receipts import Receipt
from genmod.scoring.table import ScoreConfig

OnProgress = Callable[[int, int], None]
"""Called with images done and images in all, over all jobs; first with what was done before."""


def no_progress(done: int, total: int) -> None:
    """Nobody wants to know."""


def no_connect() -> None:
    """Ray is connected already."""


@dataclass(frozen=True)
class Options:
    """What does not change the result."""

    cluster: ClusterConfig = ClusterConfig()
    """What an actor asks for."""
    on_progress: OnProgress = no_progress
    connect: Callable[[], None] = no_connect
    """Called once if there is work to do, so that finished work does not wait for Ray."""


ALONE = Options()
"""Ray is connected, nobody watches."""


@dataclass(frozen=True)
class WorkUnit:
    """What one actor does at a time."""

    name: str
    """Of its receipt."""
    rows: int
    what: dict[str, Any]
    """JSON values that tell the actor which piece it is."""


ManifestT = TypeVar("ManifestT", bound=Manifest)


ReceiptT = TypeVar("ReceiptT", bound=Receipt)


@dataclass(frozen=True)
class Job(Generic[ManifestT, ReceiptT]):
    """One folder's work."""

    name: str
    out_root: str
    kind: str
    fingerprint: str
    manifest: type[ManifestT]
    receipt: type[ReceiptT]
    pieces: Sequence[WorkUnit]
    plan: Config
    """What the actors need to know of the job: a Config."""
    inputs: Mapping[str, tuple[str, str]]
    """Name of an input -> its URL and digest."""
    finish: Callable[[Sequence[ReceiptT]], ManifestT]
    """Makes the manifest from the receipts of all pieces, in order."""
    first: Job[ManifestT, ReceiptT] | None = None
    """Work that must be done before any piece of this one."""
    head: WorkUnit | None = None
    """What one actor does alone, before the others would each do it; it keeps a receipt of its own."""


class WorkUnitActor(ModelActor):
    """Makes pieces of several jobs. A piece that has its receipt already is not made again."""

    receipt: ClassVar[type[Any]]

    def __init__(self, *, plans: Sequence[Any], **options: Any) -> None:
        super().__init__(**options)
        self.plans = plans

    @abstractmethod
    def make(self, plan: Any, piece: str, what: dict[str, Any]) -> Any:
        """Write a piece's files and give its receipt."""

    def do(self, task: Task) -> TaskResult:
        """Make a piece and commit it; the receipt that counts may be that of a faster actor."""
        plan = self.plans[task["job"]]
        found = receipts.load_receipt(self.receipt, plan.out_root, task["piece"], plan.fingerprint)
        if found is None:
            made = self.make(plan, task["piece"], task["what"])
            found = receipts.commit(plan.out_root, task["piece"], made)
        metadata = {key: task[key] for key in ("job", "piece", "rows")}
        return metadata | {"receipt": found.model_dump(mode="json")}


class _Open(Generic[ManifestT, ReceiptT]):
    """A job under way: which receipts it has."""

    def __init__(self, job: Job[ManifestT, ReceiptT]) -> None:
        claim(job.out_root, job.fingerprint)
        self.job = job
        self.names = [piece.name for piece in job.pieces]
        self.done = receipts.load_receipts(job.receipt, job.out_root, self.names, job.fingerprint)

    def tasks(self, number: int) -> list[Task]:
        """What is left to do; ``number`` is the job's."""
        left = [piece for piece in self.job.pieces if piece.name not in self.done]
        return [self._task(number, piece) for piece in left]

    def heads(self, number: int) -> list[Task]:
        """What to do before them, if there are several."""
        head = self.job.head
        several = len(self.names) - len(self.done) > 1
        return [self._task(number, head)] if head is not None and several else []

    def _task(self, number: int, piece: WorkUnit) -> Task:
        return {
            "name": f"{self.job.name} {piece.name}",
            "job": number,
            "piece": piece.name,
            "rows": piece.rows,
            "what": piece.what,
        }

    def add(self, metadata: TaskResult) -> None:
        """A piece was done."""
        self.done[metadata["piece"]] = self.job.receipt.model_validate(metadata["receipt"])

    def finished(self) -> ManifestT | None:
        """The published manifest, if every piece is done."""
        if len(self.done) < len(self.names):
            return None
        manifest = self.job.finish([self.done[name] for name in self.names])
        return publish(self.job.out_root, manifest)


def run_jobs(
    jobs: Sequence[Job[ManifestT, ReceiptT]],
    actor: type[WorkUnitActor],
    config: SampleConfig | ScoreConfig,
    options: Options,
) -> list[ManifestT]:
    """Do what is left of some jobs and publish each; finished ones are only looked up.

    The pieces of the jobs take turns, so that the pace is even and the time left can be told. Models of all
    jobs must fit on one device together.

    Raises:
        ConfigError: a folder holds other work; or the cluster has no room for one actor.
        GenmodError: pieces failed. All others are done and stay done.
    """
    manifests: dict[int, ManifestT] = {}
    in_progress: dict[int, _Open[ManifestT, ReceiptT]] = {}
    for number, job in enumerate(jobs):
        found = find_done(job.manifest, job.out_root, job.kind, job.fingerprint)
        if found is not None:
            manifests[number] = found
            continue
        in_progress[number] = opened = _Open(job)
        if (manifest := opened.finished()) is not None:
            manifests[number] = manifest
    before = [opened.job.first for opened in in_progress.values() if opened.job.first is not None]
    if before:
        run_jobs(before, actor, config, options)
    total = sum(piece.rows for job in jobs for piece in job.pieces)
    turns = zip_longest(*(opened.tasks(number) for number, opened in in_progress.items()))
    tasks = [task for turn in turns for task in turn if task is not None]
    done = total - sum(task["rows"] for task in tasks)
    options.on_progress(done, total)
    if tasks:
        options.connect()
    do = partial(
        run,
        actor,
        workers=config.workers,
        resources=resource_request(config.device, options.cluster),
        deadline_s=config.deadline_s,
        plans=[job.plan for job in jobs],
    )
    heads = [task for number, opened in in_progress.items() for task in opened.heads(number)]
    if config.workers > 1:
        for _ in do(heads):
            pass
    for metadata in do(tasks):
        opened = in_progress[metadata["job"]]
        opened.add(metadata)
        done += metadata["rows"]
        options.on_progress(done, total)
        if (manifest := opened.finished()) is not None:
            manifests[metadata["job"]] = manifest
    assert len(manifests) == len(jobs), "pieces came to nothing without a word"
    return [manifests[number] for number in range(len(jobs))]
