"""The scoring job: a log-likelihood for every row of a split, in bulk, with Ray Data."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from cluster.actors import Task, TaskResult
from genmod import receipts
from genmod.config import Config, as_json, parse
from genmod.data.reading.reader import RowReader
from genmod.errors import GenmodError
from genmod.interface.model import GenerativeModel
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import DatasetManifest, FileEntry, Manifest, require, write_file
from genmod.scoring.calibrated import add_ood_scores, calibration_metadata, read_scores
from genmod.scoring.label import ScoreLabel, common_label
from genmod.scoring.moments import RunningMoments
from genmod.scoring.ood_scores import count_rare
from genmod.scoring.table import ScoreConfig, Scores, summary
from genmod.scoring.work_units import ShardSlice, prepare, score_rows, shard_slices
from pipelines.jobs.bulk import DEFAULT, BulkJob, BulkOptions, WorkUnit, WorkUnitActor, run_jobs
from pipelines.jobs.score_plan import ScoreJob, ScorePlan, plan_score

PREPARED = "prepared"
"""Name of the receipt of the setup task."""


class PreparedReceipt(Config):
    """The result of the setup task, with which every table is computed."""

    fingerprint: str
    options: dict[str, Any]
    """The family's options with the fitted values filled in."""
    metadata: dict[str, float]


class ScoreReceipt(Config):
    """The receipt of one table of scores."""

    fingerprint: str
    file: FileEntry
    rows: int
    nats: RunningMoments
    label: ScoreLabel
    prepared: dict[str, float] = {}
    """Numbers that the setup task measured."""
    rare: dict[str, int] = {}
    """How many rows have a p below :data:`~genmod.scoring.ood_scores.RARE_P`, by column."""


class ScoreActor(WorkUnitActor):
    """Writes tables of log-likelihoods."""

    receipt = ScoreReceipt

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._calibration_scores: dict[str, Scores] = {}

    def do(self, task: Task) -> TaskResult:
        """Write a table, or run the setup task."""
        if task["unit"] != PREPARED:
            return super().do(task)
        plan = self.plans[task["job"]]
        model = self.model(plan.model_root, plan.model_digest, plan.config.weights)
        return {"unit": PREPARED, "receipt": as_json(self._prepared(plan, model))}

    def write_unit(self, plan: ScorePlan, name: str, parameters: dict[str, Any]) -> ScoreReceipt:
        """Write one table: the scores of some rows of one shard."""
        model = self.model(plan.model_root, plan.model_digest, plan.config.weights)
        prepared, calibration = self._prepared(plan, model), self._calibration(plan)
        options = parse(model.Score, prepared.options, f"model.{plan.name}.score")
        rows = ShardSlice.model_validate(parameters)
        reader = RowReader(plan.spec, [rows.shard], label_maps=[plan.label_map])
        scores = score_rows(
            model,
            options,
            reader,
            rows.rows(),
            plan.config.micro_batch,
            seed=plan.seed,
            known=calibration if plan.is_calibrated_by_own_rows else None,
        )
        reader.close()
        if calibration is not None:
            own = plan.is_calibrated_by_own_rows
            scores = add_ood_scores(scores, calibration, plan.spec, own=own)
        # Accelerators of different kinds may round differently, so each attempt has its own file name.
        if self.device != "cpu":
            name = f"{name}-{uuid.uuid4().hex[:8]}"
        data = scores.to_parquet(plan.spec.dims, plan.metadata(), plan.spec.levels)
        return ScoreReceipt(
            fingerprint=plan.fingerprint,
            file=write_file(plan.out_root, f"{name}.parquet", data),
            rows=len(rows),
            nats=RunningMoments.of(scores.nats_B),
            label=scores.label,
            prepared=prepared.metadata,
            rare=count_rare(scores.columns),
        )

    def _calibration(self, plan: ScorePlan) -> Scores | None:
        """The scores of the calibration rows, read once."""
        if plan.calibration is None:
            return None
        key = plan.calibration.fingerprint
        if key not in self._calibration_scores:
            root = plan.calibration.out_root
            manifest = require(Manifest, root, "scores", "score")
            self._calibration_scores[key] = read_scores(root, manifest)
        return self._calibration_scores[key]

    def _prepared(self, plan: ScorePlan, model: GenerativeModel) -> PreparedReceipt:
        """The result of the setup task, which the first actor that needs it runs."""
        if plan.calibration is not None:
            return self._prepared(plan.calibration, model)
        options = plan.parsed_options()
        if not options.prepares:
            return PreparedReceipt(fingerprint=plan.fingerprint, options=plan.options, metadata={})
        receipt = receipts.load_receipt(PreparedReceipt, plan.out_root, PREPARED, plan.fingerprint)
        if receipt is None:
            own = require(DatasetManifest, plan.own_root, "dataset", "shard")
            prepared = prepare(
                model, options, plan.own_root, own, seed=plan.seed, label_map=plan.own_label_map
            )
            receipt = PreparedReceipt(
                fingerprint=plan.fingerprint,
                options=as_json(prepared.options),
                metadata=dict(sorted(prepared.metadata.items())),  # as a receipt on disk is sorted
            )
            receipt = receipts.commit(plan.out_root, PREPARED, receipt)
        return receipt


def bulk_score_job(
    plan: ScorePlan, snapshot: ManifestSnapshot, title: str = ""
) -> BulkJob[Manifest, ScoreReceipt]:
    """The job of a plan, with one table for each work unit, after the job of its calibration rows.

    Args:
        plan: of the job.
        snapshot: the manifests that the command has read.
        title: of its progress; ``score NAME`` if not given.
    """
    dataset = snapshot.dataset(plan.data_root)
    slices = list(shard_slices(plan.data_root, dataset, plan.config, plan.seed))

    first = None
    if plan.calibration is not None:
        first = bulk_score_job(plan.calibration, snapshot, f"calibrate {plan.name}")

    @receipts.together(plan.out_root)
    def finish(tables: Sequence[ScoreReceipt], calibration: Manifest | None) -> Manifest:
        return _manifest(plan, tables, calibration)

    return BulkJob(
        name=plan.name,
        title=title or f"score {plan.name}",
        out_root=plan.out_root,
        kind="scores",
        fingerprint=plan.fingerprint,
        manifest=Manifest,
        receipt=ScoreReceipt,
        units=[WorkUnit(rows.name, len(rows), as_json(rows)) for rows in slices],
        plan=plan,
        inputs={
            "model": (plan.model_root, plan.model_digest),
            "dataset": (plan.data_root, plan.dataset_digest),
        },
        finish=finish,
        first=first,
        setup_task=WorkUnit(PREPARED, 0, {}) if _needs_setup(plan) else None,
    )


def _manifest(
    plan: ScorePlan, tables: Sequence[ScoreReceipt], calibration: Manifest | None
) -> Manifest:
    """The manifest of all tables, with a summary of their scores. GenmodError if rows were lost."""
    rows = sum(receipt.rows for receipt in tables)
    if rows != plan.rows or rows != sum(receipt.nats.n for receipt in tables):
        raise GenmodError(
            f"{plan.out_root}: got scores of {rows} rows, expected {plan.rows}; remove that folder and "
            "score again"
        )
    if len({tuple(sorted(receipt.rare)) for receipt in tables}) != 1:
        raise GenmodError(
            f"{plan.out_root}: its receipts count rare rows by different columns; remove that folder and "
            "score again"
        )
    label = common_label(receipt.label for receipt in tables)
    parents = {"model": plan.model_digest, "dataset": plan.dataset_digest}
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
    return Manifest(
        kind="scores",
        fingerprint=plan.fingerprint,
        parents=parents,
        files=tuple(receipt.file for receipt in tables),
        metadata=plan.config.result()
        | plan.metadata()
        | {"name": plan.name, "family": plan.family}
        | {"rows_of_files": [receipt.rows for receipt in tables]}
        | {"prepared": tables[0].prepared}
        | compared
        | summary([receipt.nats for receipt in tables], plan.spec.dims, label, plan.spec.levels),
    )


def _needs_setup(plan: ScorePlan) -> bool:
    """Whether this job's own setup task is left to do."""
    if plan.calibration is not None or not plan.parsed_options().prepares:
        return False
    return receipts.load_receipt(PreparedReceipt, plan.out_root, PREPARED, plan.fingerprint) is None


def score_models(
    jobs: Sequence[ScoreJob], config: ScoreConfig, *, seed: int, options: BulkOptions = DEFAULT
) -> list[Manifest]:
    """Score with several models in one Ray Data execution, whose start-up is then paid once.

    Finished jobs are skipped; interrupted jobs resume.

    Raises:
        Unscorable: a model has no density; nothing was started.
        ConfigError: a model and the dataset do not fit, or a folder contains other work.
        GenmodError: work units failed; all others are done and stay done.
    """
    snapshot = options.snapshot
    plans = [plan_score(job, config, seed=seed, snapshot=snapshot) for job in jobs]
    bulk_jobs = [bulk_score_job(plan, snapshot) for plan in plans]
    return run_jobs(bulk_jobs, ScoreActor, config, options)


def score(
    job: ScoreJob, config: ScoreConfig, *, seed: int, options: BulkOptions = DEFAULT
) -> Manifest:
    """Score with one model: :func:`score_models` of a list of one."""
    return score_models([job], config, seed=seed, options=options)[0]
