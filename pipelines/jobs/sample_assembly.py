"""Assembles a synthetic dataset in the driver: the units that are left, the accepted images, the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from genmod.config import as_json, fingerprint
from genmod.errors import DataError
from genmod.generation.accepted import AcceptedSet
from genmod.generation.lanes import Cover, LaneRange, SampleUnit, joined
from genmod.generation.rejected import (
    CandidateRows,
    candidates_of_shard,
    read_candidates,
    read_rejected_images,
)
from genmod.generation.request import SampleRequest
from genmod.generation.sets import SampleSet, SampleShard
from genmod.generation.synthetic import SAMPLE_SPLIT
from genmod.generation.unit import SampleReceipt
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import DatasetManifest
from pipelines.jobs.bulk import WorkUnit
from pipelines.jobs.sample_manifest import sample_manifest
from pipelines.jobs.sample_plan import SamplePlan

_READ_THREADS = 16
"""Tables of candidates that are read at the same time."""


@dataclass(frozen=True)
class _Decided:
    """A unit and its accepted images."""

    receipt: SampleReceipt
    kept: tuple[int, ...]
    """Indices of the accepted images."""
    parts: tuple[LaneRange, ...]
    """The candidates that were examined."""
    is_whole: bool
    """Whether the unit's shard has exactly the accepted images."""

    @property
    def trim_name(self) -> str:
        """Name of the unit that writes a shard of the accepted images alone."""
        return f"kept-{self.kept[0]:012d}-{fingerprint(self.receipt.parts, self.kept)[:10]}"


class SampleAssembly:
    """The dataset of one plan, from shared shards and from units."""

    def __init__(self, plan: SamplePlan, snapshot: ManifestSnapshot) -> None:
        self.plan = plan
        self._lanes = plan.request.lanes
        self._sets = [SampleSet(root, snapshot.dataset(root)) for root in plan.shared_roots]
        self._shared: list[SampleShard] = []
        self._decided: list[_Decided] = []
        self._is_trimming = False
        self._accepted: AcceptedSet | None = None
        self._left: tuple[LaneRange, ...] = ()
        if plan.quotas is not None:
            tries = plan.request.tries(plan.config.max_tries)
            self._accepted = AcceptedSet(self._lanes, plan.quotas, tries, plan.config.micro_batch)
            self._share_accepted(self._accepted)
        elif self._is_filtered:
            self._left = plan.intervals
        else:
            cover = Cover(plan.intervals)
            self._shared = [shard for shard in self._all_shards() if cover.take(shard.parts)]
            self._left = cover.left()

    @property
    def _is_filtered(self) -> bool:
        return self.plan.config.filters.is_on

    @property
    def shared_rows(self) -> int:
        """Images of shared shards."""
        return sum(shard.entry.rows for shard in self._shared)

    def first_units(self) -> list[WorkUnit]:
        """The units of the first wave."""
        if self._accepted is not None:
            return self._next_wave(self._accepted)
        return self._units(self._left, self.plan.config.shard_rows)

    def next_units(self, receipts: Sequence[SampleReceipt]) -> list[WorkUnit]:
        """The units after a wave, given its receipts in order; none if the dataset is complete."""
        if not self._is_filtered or self._is_trimming:
            return []
        self._decided += self._decide(receipts)
        if self._accepted is not None and (units := self._next_wave(self._accepted)):
            return units
        self._is_trimming = True
        return [
            WorkUnit(
                each.trim_name,
                len(each.kept),
                {"parts": each.parts, "receipt": as_json(each.receipt), "kept": each.kept},
            )
            for each in self._decided
            if each.kept and not each.is_whole
        ]

    def cost(self, unit: WorkUnit) -> float:
        """Images of a unit."""
        return unit.num_rows

    def halves(self, unit: WorkUnit) -> list[WorkUnit]:
        """A unit in two parts; none if it is too small to be divided."""
        if "kept" in unit.parameters:
            return []
        whole = SampleUnit(self._lanes, _parts(unit))
        return [_work_unit(half) for half in whole.halves(self.plan.config.micro_batch)]

    def quarantined(self, unit: WorkUnit, reason: str) -> SampleReceipt:
        """The receipt of a unit that cannot be generated: all of its images go to quarantine."""
        parts = _parts(unit)
        ranges = SampleUnit(self._lanes, parts).ranges()
        return SampleReceipt(
            fingerprint=self.plan.stream,
            parts=parts,
            shard=None,
            stats=None,
            quarantined=tuple((index, reason) for part in ranges for index in part),
        )

    def lacks_rows(self, receipt: SampleReceipt) -> bool:
        """Whether images of a unit could not be generated."""
        return bool(receipt.quarantined)

    def finish(self, receipts: Mapping[str, SampleReceipt]) -> DatasetManifest:
        """The manifest of the whole dataset.

        Args:
            receipts: of all units of all waves, by name, in order.

        Raises:
            DataError: they are of another number of images than requested.
        """
        plan = self.plan
        if self._is_filtered:
            own = [
                _shard(receipts[each.trim_name], plan.out_root)
                if not each.is_whole
                else _shard(each.receipt, plan.out_root, each.parts)
                for each in self._decided
                if each.kept
            ]
        else:
            own = self._own(receipts.values())
        manifest = self._manifest(plan.request, [*self._shared, *own], receipts.values())
        rows = manifest.rows(SAMPLE_SPLIT) + manifest.quarantined
        if rows != plan.rows and (plan.quotas is not None or not self._is_filtered):
            raise DataError(
                f"{plan.out_root}: its receipts are of {rows:,} images, expected {plan.rows:,}; remove the "
                "folder and sample again"
            )
        return manifest

    def partial(
        self, receipts: Mapping[str, SampleReceipt], names: Sequence[str]
    ) -> DatasetManifest | None:
        """The manifest of the images before the first unit without a receipt; None if there are none.

        Args:
            receipts: that exist, by name.
            names: of the units of the current wave, in order.
        """
        done: list[SampleReceipt] = []
        for name in names:
            if name not in receipts:
                break
            done.append(receipts[name])
        if self._is_filtered:
            return self._partial_accepted(done)
        own = self._own(done)
        parts = [part for receipt in done for part in receipt.parts]
        parts += [part for shard in self._shared for part in shard.parts]
        request = SampleRequest(self.plan.labels, joined(parts))
        return self._manifest(request, [*self._shared, *own], done) if request.rows else None

    def _partial_accepted(self, receipts: Sequence[SampleReceipt]) -> DatasetManifest | None:
        """As :meth:`partial`, with filters: the units before the first one that has to be trimmed."""
        if self._accepted is None or self._is_trimming:
            return None
        shards = list(self._shared)
        for each in [*self._decided, *self._decide(receipts)]:
            if not each.is_whole:
                break
            if each.kept:
                shards.append(_shard(each.receipt, self.plan.out_root, each.parts))
        quotas: dict[int, int] = {}
        for shard in shards:
            for lane, rows in self._rows_of_lanes(shard).items():
                quotas[lane] = quotas.get(lane, 0) + rows
        request = SampleRequest(self.plan.labels, (), quotas)
        return self._manifest(request, shards, receipts) if shards else None

    def _all_shards(self) -> Iterator[SampleShard]:
        """The shards of all datasets of the stream, those of the largest dataset first."""
        for each in self._sets:
            yield from each.own_shards()

    def _next_wave(self, accepted: AcceptedSet) -> list[WorkUnit]:
        return self._units(accepted.next_wave(), accepted.unit_rows(self.plan.config.shard_rows))

    def _units(self, intervals: Iterable[LaneRange], rows: int) -> list[WorkUnit]:
        return [_work_unit(unit) for unit in self._lanes.units(intervals, rows)]

    def _decide(self, receipts: Sequence[SampleReceipt]) -> list[_Decided]:
        """Decide on the candidates of units, in order."""
        root, signed = self.plan.out_root, self.plan.config.filters.earlier_copies

        def read(receipt: SampleReceipt) -> CandidateRows:
            return read_candidates(root, receipt, signed=signed)

        decided: list[_Decided] = []
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            tables = pool.map(read, receipts)
            for receipt, candidates in zip(receipts, tables, strict=True):
                written, parts = candidates.written(), receipt.parts
                kept = written
                if self._accepted is not None:
                    kept = self._accepted.add(candidates)
                    parts = self._accepted.examined(parts)
                decided.append(_Decided(receipt, tuple(kept), parts, written == kept))
        return decided

    def _own(self, receipts: Iterable[SampleReceipt]) -> list[SampleShard]:
        root = self.plan.out_root
        return [_shard(receipt, root) for receipt in receipts if receipt.shard is not None]

    def _share_accepted(self, accepted: AcceptedSet) -> None:
        """Share the shards of accepted images that other requests have, from the first image on."""
        quotas, filters = self.plan.quotas or {}, self.plan.config.filters
        rejected = {index: why for each in self._sets for index, why in read_rejected_images(each)}
        end: dict[int, int] = {}
        for shard in sorted(self._all_shards(), key=lambda each: each.first_index(self._lanes)):
            rows, parts = self._rows_of_lanes(shard), joined(shard.parts)
            if any(accepted.counts[lane] + n > quotas.get(lane, 0) for lane, n in rows.items()):
                break
            if any(part.start != end.get(part.lane, 0) for part in parts):
                break
            unit = SampleUnit(self._lanes, shard.parts)
            candidates = candidates_of_shard(
                shard, unit, self.plan.spec, rejected, signed=filters.earlier_copies
            )
            accepted.add(candidates)
            self._shared.append(shard)
            end |= {part.lane: part.stop for part in parts}

    def _rows_of_lanes(self, shard: SampleShard) -> dict[int, int]:
        """Accepted images of a shard, by lane."""
        if not self._lanes.block:
            return {0: shard.entry.rows}
        return {lane: n for lane, n in enumerate(shard.stats.rows_K) if n}

    def _manifest(
        self,
        request: SampleRequest,
        shards: Sequence[SampleShard],
        receipts: Iterable[SampleReceipt],
    ) -> DatasetManifest:
        rejected = self._rejected() if self._is_filtered else None
        made = list(receipts)
        return sample_manifest(
            self.plan, self._sets, request, shards, receipts=made, rejected=rejected
        )

    def _rejected(self) -> Iterable[tuple[int, str]]:
        """Every candidate before the last accepted image that was rejected."""
        if self._accepted is not None:
            return self._accepted.rejected
        root = self.plan.out_root
        tables = (read_candidates(root, each.receipt, signed=False) for each in self._decided)
        return (
            (index, reason)
            for table in tables
            for index, reason in zip(table.index_N.tolist(), table.reasons, strict=True)
            if reason is not None
        )


def _shard(
    receipt: SampleReceipt, root: str, parts: tuple[LaneRange, ...] | None = None
) -> SampleShard:
    assert receipt.shard is not None
    assert receipt.stats is not None
    return SampleShard(receipt.shard, parts or receipt.parts, receipt.stats, root)


def _parts(unit: WorkUnit) -> tuple[LaneRange, ...]:
    return tuple(LaneRange(*part) for part in unit.parameters["parts"])


def _work_unit(unit: SampleUnit) -> WorkUnit:
    return WorkUnit(unit.name, unit.rows, {"parts": unit.intervals})
