"""The manifest of scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from genmod import units
from genmod.budget import BUDGET
from genmod.documents import validate
from genmod.errors import GenmodError
from genmod.manifest import Manifest
from genmod.scoring.calibrated import calibration_metadata, read_scores
from genmod.scoring.label import common_label
from genmod.scoring.receipt import ScoreReceipt, write_unscored
from genmod.scoring.split_mean import split_metadata
from genmod.scoring.table import summary
from pipelines.jobs.score_plan import ScorePlan


class _Counts(BaseModel):
    """What later jobs and commands read of a manifest of scores."""

    quarantined: int = Field(default=0, ge=0, le=BUDGET.rows)
    calibration_quarantined: int = Field(default=0, ge=0, le=BUDGET.rows)
    numerics: list[str] = []


def _counts(manifest: Manifest) -> _Counts:
    where, remedy = "the metadata of scores", "remove their folder and score again"
    return validate(_Counts, manifest.metadata, "the manifest of scores", where, remedy)


def count_unscored(manifest: Manifest) -> int:
    """Rows without a score, those of calibration rows of another split included."""
    counts = _counts(manifest)
    return counts.quarantined + counts.calibration_quarantined


def numeric_classes(manifest: Manifest) -> list[str]:
    """Numeric classes of the workers that computed scores."""
    return _counts(manifest).numerics


def score_manifest(
    plan: ScorePlan,
    receipts: Sequence[ScoreReceipt],
    calibration: Manifest | None,
    split_rows: int,
) -> Manifest:
    """The manifest of all tables, with a summary of their scores. Writes the list of rows without one.

    Args:
        plan: of the job.
        receipts: of all units, in order.
        calibration: manifest of the calibration rows' scores.
        split_rows: rows of the split.

    Raises:
        GenmodError: rows were lost, or none has a score.
    """
    again = "remove that folder and score again"
    tables = [receipt for receipt in receipts if receipt.file is not None]
    rejected = [row for receipt in receipts for row in receipt.rejected]
    rows = sum(receipt.rows for receipt in receipts)
    if rows + len(rejected) != plan.rows or rows != sum(receipt.nats.n for receipt in tables):
        raise GenmodError(
            f"{plan.out_root}: got scores of {rows} rows and {len(rejected)} rows without, expected "
            f"{plan.rows}; {again}"
        )
    if not tables:
        raise GenmodError(
            f"{plan.out_root}: none of {plan.rows} rows has a score; {rejected[0].key}: "
            f"{rejected[0].reason}; check that the model is trained and did not diverge, then {again}"
        )
    if len({tuple(sorted(receipt.rare)) for receipt in tables}) != 1:
        raise GenmodError(
            f"{plan.out_root}: its receipts count rare rows by different columns; {again}"
        )
    label = common_label(receipt.label for receipt in tables if receipt.label is not None)
    parents = {"model": plan.model_digest, "dataset": plan.dataset_digest}
    numerics = {receipt.numerics for receipt in receipts if receipt.numerics}
    compared: dict[str, Any] = {}
    if plan.calibration is not None:
        assert calibration is not None, "the calibration job runs first"
        parents["calibration"] = calibration.digest
        scores = read_scores(plan.calibration.out_root, calibration)
        compared = calibration_metadata(scores, plan.spec) | {
            "calibration_split": plan.calibration.config.split,
            "rare": {
                name: sum(receipt.rare[name] for receipt in tables) / rows
                for name in tables[0].rare
            },
        }
        if plan.is_calibrated_by_own_rows:
            numerics |= set(numeric_classes(calibration))
        else:
            compared["calibration_quarantined"] = count_unscored(calibration)
    moments = [receipt.nats for receipt in tables]
    noise = sum(receipt.noise for receipt in tables)

    def bits(nats: float) -> float:
        return float(units.bits_per_dim(nats, plan.spec.dims, label.measure, plan.spec.levels))

    files = [receipt.file for receipt in tables if receipt.file is not None]
    return Manifest(
        kind="scores",
        fingerprint=plan.fingerprint,
        parents=parents,
        files=(*files, *write_unscored(plan.out_root, rejected)),
        metadata=plan.config.result()
        | plan.metadata()
        | {"name": plan.name, "family": plan.family, "numerics": sorted(numerics)}
        | {"rows_of_files": [receipt.rows for receipt in tables], "quarantined": len(rejected)}
        | {"prepared": tables[0].prepared}
        | compared
        | summary(moments, plan.spec.dims, label, plan.spec.levels)
        | split_metadata(moments, split_rows, noise, bits, unscored=len(rejected)),
    )
