"""How the work of a scoring job is divided when a unit fails: halves, down to one row, then quarantine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from genmod.config import as_json
from genmod.data.reading.reader import RowReader
from genmod.scoring.moments import RunningMoments
from genmod.scoring.receipt import ScoreReceipt, UnscoredRow
from genmod.scoring.work_units import ShardSlice
from pipelines.jobs.bulk import WorkUnit
from pipelines.jobs.score_plan import ScorePlan


def score_unit(rows: ShardSlice) -> WorkUnit:
    """The work unit of a slice."""
    return WorkUnit(rows.name, len(rows), as_json(rows))


class ScoreDivision:
    """Divides the units of one job."""

    def __init__(self, plan: ScorePlan) -> None:
        self.plan = plan

    def next_units(self, receipts: Sequence[ScoreReceipt]) -> list[WorkUnit]:
        """No further units: a scoring job has one wave."""
        return []

    def cost(self, unit: WorkUnit) -> float:
        """Micro-batches of a unit."""
        return _slice(unit).micro_batches(self.plan.config.batch_rows)

    def halves(self, unit: WorkUnit) -> list[WorkUnit]:
        """A unit in two parts; none if it is one row."""
        return [score_unit(half) for half in _slice(unit).halves()]

    def quarantined(self, unit: WorkUnit, reason: str) -> ScoreReceipt:
        """The receipt of a unit that cannot be scored: its rows go to quarantine."""
        rows = _slice(unit)
        reader = RowReader(self.plan.spec, [rows.shard])
        keys = reader.keys()
        index_N = reader.find(np.asarray(rows.rows(), dtype=np.int64)).index_N
        reader.close()
        numbered = zip(rows.rows(), index_N.tolist(), strict=True)
        return ScoreReceipt(
            fingerprint=self.plan.fingerprint,
            file=None,
            rows=0,
            nats=RunningMoments(),
            label=None,
            rejected=tuple(UnscoredRow.of(keys[row], index, reason) for row, index in numbered),
        )

    def lacks_rows(self, receipt: ScoreReceipt) -> bool:
        """Whether rows of a unit have no score."""
        return bool(receipt.rejected)

    def partial(self, receipts: Mapping[str, ScoreReceipt], names: Sequence[str]) -> None:
        """A part of the scores is never published."""
        return


def _slice(unit: WorkUnit) -> ShardSlice:
    return ShardSlice.model_validate(unit.parameters)
