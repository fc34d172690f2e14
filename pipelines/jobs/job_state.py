"""The state of one bulk job in the driver: its units, its receipts, and what happens to units that fail."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Generic

from cluster.actors import Task, TaskResult
from cluster.metrics import RECORDER
from genmod import receipts
from genmod.documents import validate
from genmod.errors import GenmodError, sanitize
from genmod.manifest import ManifestT, publish
from genmod.receipts import ReceiptT
from pipelines.jobs.bulk import BulkJob, WorkUnit
from pipelines.jobs.work_times import Left

RESUME = "run the same command again to resume"

_ATTEMPTS = 2
"""Attempts at a unit before it is divided. Parts of a divided unit have one."""

_GATHER_S = 60.0
"""Longest time between two segments of receipts of a large job, in seconds."""

_LEAST_DEADLINE = 0.1
"""Share of the deadline that a part of a unit has at least."""


class BulkJobState(Generic[ManifestT, ReceiptT]):
    """A job that is not finished."""

    def __init__(self, job: BulkJob[ManifestT, ReceiptT], first: ManifestT | None) -> None:
        self.job = job
        self._first = first
        self._receipts: dict[str, ReceiptT] = {}
        self._ungathered: dict[str, ReceiptT] = {}
        """New receipts that are in no segment."""
        self._gathered_s = time.monotonic()
        self._wave: dict[str, WorkUnit] = {}
        self._failures: Counter[str] = Counter()
        self._shares: dict[str, float] = {}
        """Share of the deadline of a whole unit that a part has."""
        self._whole: dict[str, WorkUnit] = {}
        """Name of a part -> the unit that was divided."""
        self._parts: dict[str, list[WorkUnit]] = {}
        """Name of a unit that is tried once more -> its parts, which are done."""
        self._order: list[str] = []
        self.total_rows = self.done_rows = self._left_units = 0
        self._start_wave(list(job.units))

    def _start_wave(self, units: list[WorkUnit]) -> None:
        """Begin the next units, and read the receipts that they have."""
        self._wave = {unit.name: unit for unit in units}
        job = self.job
        found = receipts.load_receipts(
            job.receipt, job.out_root, list(self._wave), job.work_fingerprint
        )
        self._receipts |= found
        self._left_units = len(self._wave) - sum(name in self._receipts for name in self._wave)
        self.total_rows += sum(unit.num_rows for unit in units)
        self.done_rows += sum(self._wave[name].num_rows for name in found)

    @property
    def left(self) -> Left:
        """What is left of the units that are known so far."""
        rows = self.total_rows - self.done_rows
        return Left(self.job.title, self.job.name, self._left_units, rows)

    def tasks(self, number: int) -> list[Task]:
        """The units without a receipt; ``number`` is the job's."""
        missing = [unit for name, unit in self._wave.items() if name not in self._receipts]
        return [self._task(number, unit) for unit in missing]

    def setup_tasks(self, number: int) -> list[Task]:
        """The setup task, if several units wait for it."""
        setup_task = self.job.setup_task
        several = len(self._wave) - len(self._receipts) > 1
        return [self._task(number, setup_task)] if setup_task is not None and several else []

    def _task(self, number: int, unit: WorkUnit) -> Task:
        return {
            "name": f"{self.job.name} {unit.name}",
            "job": number,
            "unit": unit.name,
            "num_rows": unit.num_rows,
            "parameters": unit.parameters,
            "deadline_share": self._shares.get(unit.name, 1.0),
        }

    def add(self, result: TaskResult) -> None:
        """Keep the receipt of a unit that an actor has written."""
        unit = self._unit(result)
        where = f"the result of {self.job.title} {unit.name}"
        schema: type[Any] = self.job.receipt
        receipt = validate(schema, result.get("receipt"), "a receipt", where, RESUME)
        self._keep(unit, receipt, where)

    def _keep(self, unit: WorkUnit, receipt: ReceiptT, where: str) -> None:
        if receipt.fingerprint != self.job.work_fingerprint:
            raise GenmodError(f"{where} belongs to other work; {RESUME}")
        if unit.name not in self._receipts:
            self.done_rows += unit.num_rows
            self._left_units -= 1
            self._ungathered[unit.name] = receipt
            self._gather()
        self._receipts[unit.name] = receipt

    def _gather(self) -> None:
        """Write a segment of new receipts of a large job, when there are many or some time has passed."""
        now_s, many = time.monotonic(), receipts.SEGMENT_RECEIPTS
        is_due = now_s - self._gathered_s > _GATHER_S
        if len(self._wave) > many and (is_due or len(self._ungathered) >= many):
            receipts.write_segment(self.job.out_root, self._ungathered)
            self._ungathered, self._gathered_s = {}, now_s

    def failed(self, result: TaskResult) -> bool:
        """Note that a unit failed. Returns whether it is tried again, divided, or put into quarantine."""
        task = result["task"]
        unit, division = self._unit(task), self.job.division
        if division is None or not result.get("divisible") or unit.name in self._receipts:
            return unit.name in self._receipts
        self._failures[unit.name] += 1
        share = self._shares.get(unit.name, 1.0)
        if share == 1.0 and self._failures[unit.name] < _ATTEMPTS:
            return True
        if unit.name in self._parts:
            self._keep_parts(unit)
            return True
        halves = division.halves(unit)
        if not halves:
            receipt = division.quarantined(unit, str(result["error"])[:300])
            job = self.job
            receipt = receipts.commit(job.out_root, unit.name, receipt)
            self._keep(unit, receipt, f"the receipt of {job.title} {unit.name}")
            RECORDER.add("genmod_quarantined", unit.num_rows, *job.title.split(" ", maxsplit=1))
            return True
        # The parts take the unit's place, so that the order of the rows stays.
        for half in halves:
            self._whole[half.name] = self._whole.get(unit.name, unit)
            self._shares[half.name] = max(
                share * division.cost(half) / division.cost(unit), _LEAST_DEADLINE
            )
        self._replace([unit], halves)
        return True

    def _replace(self, old: Sequence[WorkUnit], new: Sequence[WorkUnit]) -> None:
        """Put units in the place of neighbours, so that the order of the rows stays."""
        units = list(self._wave.values())
        at = units.index(old[0])
        units[at : at + len(old)] = new
        self.total_rows -= sum(each.num_rows for each in self._wave.values())
        self.done_rows -= sum(
            each.num_rows for name, each in self._wave.items() if name in self._receipts
        )
        self._start_wave(units)

    def _try_whole(self) -> None:
        """Put divided units whose parts are all done back, to be tried once more.

        So a fault that passes leaves no trace in the dataset: its files are those of an undisturbed run.
        Parts with rows in quarantine stay, because the unit would fail again.
        """
        division = self.job.division
        parts: dict[str, list[WorkUnit]] = {}
        for name, unit in self._wave.items():
            if name in self._whole:
                parts.setdefault(self._whole[name].name, []).append(unit)
        for name, units in parts.items():
            assert division is not None
            if not any(division.lacks_rows(self._receipts[unit.name]) for unit in units):
                self._parts[name], self._failures[name] = units, 0
                self._replace(units, [self._whole[units[0].name]])
        self._whole = {}

    def _keep_parts(self, unit: WorkUnit) -> None:
        """Put the finished parts of a unit that failed again in its place."""
        self._replace([unit], self._parts.pop(unit.name))

    def _unit(self, task: Mapping[str, Any]) -> WorkUnit:
        unit = self._wave.get(str(task.get("unit")))
        if unit is None:
            got = sanitize(str(task.get("unit")))[:80]
            raise GenmodError(
                f"{self.job.title}: a worker returned {got!r}, no unit of it; {RESUME}"
            )
        return unit

    def publish_if_done(self) -> ManifestT | None:
        """Publish the manifest if every unit has a receipt; None if not. Starts further waves."""
        while all(name in self._receipts for name in self._wave):
            if self._whole:
                self._try_whole()
                continue
            self._order += self._wave
            division = self.job.division
            wave = [self._receipts[name] for name in self._wave]
            units = [] if division is None else division.next_units(wave)
            if not units:
                ordered = {name: self._receipts[name] for name in self._order}
                return publish(self.job.out_root, self.job.finish(ordered, self._first))
            self._start_wave(units)
        return None

    def publish_partial(self) -> ManifestT | None:
        """Publish what is done as a smaller dataset; None if that is nothing, or not possible."""
        division = self.job.division
        if division is None:
            return None
        for name in [name for name in self._parts if name not in self._receipts]:
            self._keep_parts(self._wave[name])
        manifest: ManifestT | None = division.partial(self._receipts, list(self._wave))
        return None if manifest is None else publish(self.job.out_root, manifest)
