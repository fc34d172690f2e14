"""Runs bulk jobs: several jobs, divided into work units, on one pool of actors.

A job's manifest is published when all of its units are done. A unit that fails is tried on another node, then
divided; what cannot be divided is put into quarantine. A job that reaches its budget, or is interrupted,
publishes what it has.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from math import isfinite
from typing import Any

from cluster.actors import Task, TaskResult, run_actors
from cluster.metrics import RECORDER
from cluster.resources import capacity_now, has_other_nodes, resource_request
from genmod.budget import BUDGET
from genmod.errors import GenmodError
from genmod.generation.config import SampleConfig
from genmod.manifest import ManifestT, claim
from genmod.numerics import PORTABLE_VARIABLES, NumericsMode
from genmod.receipts import ReceiptT
from genmod.scoring.config import ScoreConfig
from pipelines.jobs.bulk import BulkJob, BulkOptions, WorkUnitActor
from pipelines.jobs.execution_checks import check_missing, check_nodes, raise_if_failed
from pipelines.jobs.job_state import RESUME, BulkJobState
from pipelines.jobs.work_times import Left, RowCosts, WorkTimes
from pipelines.recipe.time_left import duration

logger = logging.getLogger("genmod")

NODE_FAILURES = 3
"""Units that fail on a node before it gets no more work."""

MAX_FAILURES = 8
"""Failed units at which jobs stop where none was done yet: the work itself is at fault."""


def _run_firsts(
    jobs: Mapping[int, BulkJob[ManifestT, ReceiptT]],
    actor: type[WorkUnitActor],
    config: SampleConfig | ScoreConfig,
    options: BulkOptions,
    costs: RowCosts,
) -> dict[int, ManifestT]:
    """Run the jobs that must be done before these; their manifests, by the number of the job that waits."""
    firsts = {
        number: replace(job.first, max_quarantined=BUDGET.rows)  # counted by the job that waits
        for number, job in jobs.items()
        if job.first is not None
    }
    if not firsts:
        return {}
    later = [_units_of(job) for job in jobs.values()]
    manifests = run_jobs([*firsts.values()], actor, config, options, costs=costs, later=later)
    return dict(zip(firsts, manifests, strict=True))


def _units_of(job: BulkJob[Any, Any]) -> Left:
    """The units of a job as if none were done."""
    rows = sum(unit.num_rows for unit in job.units)
    return Left(job.title, job.name, len(job.units), rows)


def run_jobs(
    jobs: Sequence[BulkJob[ManifestT, ReceiptT]],
    actor: type[WorkUnitActor],
    config: SampleConfig | ScoreConfig,
    options: BulkOptions,
    *,
    costs: RowCosts | None = None,
    later: Sequence[Left] = (),
) -> list[ManifestT]:
    """Run jobs and publish each. Finished jobs are skipped; interrupted jobs resume.

    The units of the jobs alternate, so that the rate is even and the time left can be estimated. The models
    of all jobs must fit on one device together.

    Args:
        jobs: to run.
        actor: writes their units.
        config: the recipe's section.
        options: that do not change the results.
        costs: of rows, measured by other jobs of the command.
        later: jobs of the command that follow, for the time left in all.

    Raises:
        ConfigError: a folder contains other work; or no node of the cluster has room for one actor.
        GenmodError: units failed, or rows are in quarantine. All others are done and stay done.
    """
    snapshot = options.snapshot
    manifests: dict[int, ManifestT] = {}
    for number, job in enumerate(jobs):
        done = snapshot.find_done(
            job.manifest, job.out_root, job.kind, job.fingerprint, claimed_by=job.work
        )
        if done is not None:
            manifests[number] = done
    unfinished = {number: job for number, job in enumerate(jobs) if number not in manifests}
    costs = RowCosts() if costs is None else costs
    firsts = _run_firsts(unfinished, actor, config, options, costs)
    run = _Run(jobs, actor, config, options, manifests, WorkTimes(costs), later)
    run.states = {
        number: BulkJobState(job, firsts.get(number)) for number, job in unfinished.items()
    }
    run.work()
    for number, job in enumerate(jobs):
        check_missing(job, manifests[number])
    return [manifests[number] for number in range(len(jobs))]


@dataclass
class _Run:
    """One execution of several jobs."""

    jobs: Sequence[BulkJob[Any, Any]]
    actor: type[WorkUnitActor]
    config: SampleConfig | ScoreConfig
    options: BulkOptions
    manifests: dict[int, Any]
    """Of the finished jobs."""
    times: WorkTimes
    later: Sequence[Left]
    """Jobs that follow on another pool."""
    states: dict[int, BulkJobState[Any, Any]] = field(
        default_factory=dict[int, "BulkJobState[Any, Any]"]
    )
    excluded: set[str] = field(default_factory=set[str])
    """Nodes that get no more work."""

    def work(self) -> None:
        """Run rounds of units until all jobs are published, or time is over."""
        for number in list(self.states):
            self._report(number)
        if not self._tasks():
            return
        if self.options.connect is not None:
            self.options.connect()
        check_nodes(self.actor.section, self.config, self.options)
        for number in self.states:
            job = self.jobs[number]
            claim(job.out_root, job.work_fingerprint)
        budget = getattr(self.config, "budget", None)
        end_s = None if budget is None else time.monotonic() + 3600 * budget.hours
        started = {number: self.jobs[number] for number in self.states}
        try:
            self._set_up()
            avoided: set[str] = set()
            while tasks := self._tasks():
                avoided = self._round(tasks, avoided, end_s)
                if end_s is not None and time.monotonic() > end_s:
                    break
        except KeyboardInterrupt:
            for text in self._publish_partial("interrupted"):
                self.options.progress.log(text)
            raise
        for job in started.values():
            if summary := self.times.summary(job.title):
                self.options.progress.log(f"  {summary}")
        for text in self._publish_partial("the budget is used up"):
            raise GenmodError(text)

    @property
    def _mode(self) -> NumericsMode:
        return self.config.numerics

    def _tasks(self) -> list[Task]:
        """The units that are left, one of each job in turn. A job may lack only its manifest."""
        turns = zip_longest(*(state.tasks(number) for number, state in self.states.items()))
        return [task for turn in turns for task in turn if task is not None]

    def _report(self, number: int) -> None:
        """Report a job's progress; publish it once it is done."""
        job, state = self.jobs[number], self.states[number]
        manifest = state.publish_if_done()
        lefts = [other.left for other in self.states.values()]
        note = ""
        if self.later or sum(left.units > 0 for left in lefts) > 1:
            all_s = self.times.all_left_s(lefts, self.later)
            note = f"{duration(all_s)} left in all" if isfinite(all_s) else ""
        self.options.progress.update(
            job.title,
            state.done_rows,
            state.total_rows,
            "images",
            note,
            left_s=self.times.left_s(job.title, lefts),
        )
        if manifest is not None:
            self.manifests[number] = self.options.snapshot.add(job.out_root, manifest)
            del self.states[number]

    def _set_up(self) -> None:
        tasks = [
            task for number, state in self.states.items() for task in state.setup_tasks(number)
        ]
        if self.config.workers > 1:
            fits = {task["job"]: f"fit {self.jobs[task['job']].name}" for task in tasks}
            for title in fits.values():
                self.options.progress.update(title, 0, 1, "fits")
            for result in self._do(tasks):
                raise_if_failed([result] if "error" in result else [], len(tasks))
                self.options.progress.update(fits[int(result["job"])], 1, 1, "fits")

    def _do(self, tasks: Sequence[Task], excluded: Sequence[str] = ()) -> Generator[TaskResult]:
        resources = resource_request(self.config.device, self.options.cluster)
        run = partial(
            run_actors,
            self.actor,
            workers=self.config.workers,
            resources=resources,
            deadline_s=self.config.deadline_s,
            plans=[job.plan for job in self.jobs],
        )
        environment = PORTABLE_VARIABLES if self._mode == "portable" else None
        lefts = [state.left for state in self.states.values()]
        self.times.started(min(self.config.workers, len(tasks), capacity_now(resources)), lefts)
        yield from run(tasks, excluded_nodes=excluded, environment=environment)

    def _round(self, tasks: Sequence[Task], avoided: set[str], end_s: float | None) -> set[str]:
        """Run units once, on other nodes than those to avoid, if there are any.

        Returns:
            nodes on which units failed that are tried again.

        Raises:
            GenmodError: units failed that are not tried again.
        """
        if not has_other_nodes(self.excluded | avoided):
            avoided = set()
        failed: list[TaskResult] = []
        by_node: Counter[str] = Counter()
        done = 0
        results = self._do(tasks, sorted(self.excluded | avoided))
        with closing(results):
            for result in results:
                if "error" not in result:
                    number, done = int(result["job"]), done + 1
                    self.states[number].add(result)
                    self.times.add(self.jobs[number].title, self.jobs[number].name, result)
                    self._report(number)
                    self._count("genmod_units", number)
                else:
                    node = str(result.get("node", ""))
                    by_node[node] += 1
                    number = int(result["task"]["job"])
                    is_tried_again = self.states[number].failed(result)
                    self._count("genmod_retries", number)
                    if not is_tried_again:
                        failed.append(result)
                    if not done and by_node.total() >= MAX_FAILURES:
                        failed.append(result)
                        break
                    if by_node[node] == NODE_FAILURES and has_other_nodes(self.excluded | {node}):
                        self._exclude(node)
                        break
                if end_s is not None and time.monotonic() > end_s:
                    break
        raise_if_failed(failed, len(tasks))
        for number in list(self.states):
            self._report(number)
        return set(by_node)

    def _count(self, metric: str, number: int) -> None:
        """Add one to a metric of a job."""
        stage, _, model = self.jobs[number].title.partition(" ")
        RECORDER.add(metric, 1, stage, model)

    def _exclude(self, node: str) -> None:
        self.excluded.add(node)
        logger.warning(
            "%d units failed on node %s, which gets no more work of this job", NODE_FAILURES, node
        )

    def _publish_partial(self, reason: str) -> list[str]:
        """Publish what the unfinished jobs have. Returns a line for each that cannot be published."""
        lost: list[str] = []
        for number, state in list(self.states.items()):
            job = self.jobs[number]
            manifest = state.publish_partial()
            if manifest is None:
                done = f"{state.done_rows:,} of {state.total_rows:,} images"
                lost.append(f"{job.title}: {reason} after {done}; {RESUME}")
                continue
            rows = manifest.rows("train")
            self.options.progress.log(
                f"{job.title}: {reason}; {job.out_root} has {rows:,} of {state.total_rows:,} images, and the "
                "same command grows it"
            )
            self.manifests[number] = self.options.snapshot.add(job.out_root, manifest)
            del self.states[number]
        return lost
