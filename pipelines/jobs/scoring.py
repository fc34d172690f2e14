"""The scoring job: a log-likelihood for every row of a split, in bulk, with Ray Data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.actors import Task, TaskResult
from genmod import receipts
from genmod.config import Config, as_json, parse
from genmod.data.reading.reader import RowReader
from genmod.errors import GenmodError
from genmod.interface.model import GenerativeModel
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import DatasetManifest, Manifest, content_name, require, write_file
from genmod.scoring.calibrated import add_ood_scores, read_scores
from genmod.scoring.config import ScoreConfig
from genmod.scoring.moments import RunningMoments
from genmod.scoring.ood_scores import count_rare
from genmod.scoring.receipt import ScoreReceipt
from genmod.scoring.row_scores import ScoredRows, score_rows
from genmod.scoring.table import Scores
from genmod.scoring.work_units import ShardSlice, prepare, shard_slices
from genmod.stopwatch import FIT, measured
from pipelines.jobs.bulk import DEFAULT, BulkJob, BulkOptions, WorkUnit, WorkUnitActor
from pipelines.jobs.execution import run_jobs
from pipelines.jobs.score_division import ScoreDivision, score_unit
from pipelines.jobs.score_manifest import count_unscored, numeric_classes, score_manifest
from pipelines.jobs.score_plan import ScoreJob, ScorePlan, plan_score

PREPARED = "prepared"
"""Name of the receipt of the setup task."""

UNSCORED_UNITS = 3
"""Units without any score at which a worker stops, if it had none with one."""


class PreparedReceipt(Config):
    """The result of the setup task, with which every table is computed."""

    fingerprint: str
    options: dict[str, Any]
    """The family's options with the fitted values filled in."""
    metadata: dict[str, float]


class ScoreActor(WorkUnitActor):
    """Writes tables of log-likelihoods."""

    receipt = ScoreReceipt
    section = "score"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._calibrations: dict[str, tuple[Scores, Manifest]] = {}
        self._scored: set[str] = set()
        self._unscored: dict[str, tuple[int, str]] = {}

    def do(self, task: Task) -> TaskResult:
        """Write a table, or run the setup task."""
        if task["unit"] != PREPARED:
            return super().do(task)
        plan = self.plans[task["job"]]
        self.numerics(plan, ())
        model = self.model(plan.model_root, plan.model_digest, plan.config.weights)
        receipt = as_json(self._prepared(plan, model))
        return {"job": task["job"], "unit": PREPARED, "receipt": receipt}

    def write_unit(self, plan: ScorePlan, name: str, parameters: dict[str, Any]) -> ScoreReceipt:
        """Write one table: the scores of some rows of one shard."""
        self._check_model(plan)
        model = self.model(plan.model_root, plan.model_digest, plan.config.weights)
        prepared, calibration = self._prepared(plan, model), None
        shared: list[str] = []
        if plan.calibration is not None:
            calibration, manifest = self._calibration(plan.calibration)
            shared = numeric_classes(manifest)
        numerics = self.numerics(plan, shared)
        options = parse(model.Score, prepared.options, f"model.{plan.name}.score")
        rows = ShardSlice.model_validate(parameters)
        reader = RowReader(plan.spec, [rows.shard], label_maps=[plan.label_map])
        scored = score_rows(
            model,
            options,
            reader,
            rows.rows(),
            plan.config.batch_rows,
            seed=plan.seed,
            first=rows.start,
            known=calibration if plan.is_calibrated_by_own_rows else None,
        )
        reader.close()
        self._count(plan, scored)
        self._check_model(plan)
        file, scores = None, scored.scores
        if scores is not None:
            if calibration is not None:
                own = plan.is_calibrated_by_own_rows
                scores = add_ood_scores(scores, calibration, plan.spec, own=own)
            data = scores.to_parquet(plan.spec.dims, plan.metadata(), plan.spec.levels)
            # Processors of different kinds may round differently, so contents have their own file names.
            file = write_file(plan.out_root, f"{content_name(name, data)}.parquet", data)
        return ScoreReceipt(
            fingerprint=plan.fingerprint,
            file=file,
            rows=len(rows) - len(scored.rejected),
            nats=RunningMoments() if scores is None else RunningMoments.of(scores.nats_B),
            noise=0.0 if scores is None else float(scores.stderr_B.square().sum()),
            label=None if scores is None else scores.label,
            prepared=prepared.metadata,
            rare={} if scores is None else count_rare(scores.columns),
            rejected=scored.rejected,
            numerics=numerics,
        )

    def _check_model(self, plan: ScorePlan) -> None:
        """GenmodError if the first units of this worker had no score at all: the model is at fault."""
        units, reason = self._unscored.get(plan.out_root, (0, ""))
        if units >= UNSCORED_UNITS:
            raise GenmodError(
                f"no row of {units} tasks has a score; {reason}; check that the model is trained and did not "
                "diverge"
            )

    def _count(self, plan: ScorePlan, scored: ScoredRows) -> None:
        """Count the first units of this worker, as long as they have no score."""
        if scored.scores is not None:
            self._scored.add(plan.out_root)
            self._unscored.pop(plan.out_root, None)
        elif plan.out_root not in self._scored:
            first = scored.rejected[0]
            units, _ = self._unscored.get(plan.out_root, (0, ""))
            self._unscored[plan.out_root] = units + 1, f"{first.key}: {first.reason}"

    def _calibration(self, plan: ScorePlan) -> tuple[Scores, Manifest]:
        """The scores of the calibration rows, read once, and their manifest."""
        if plan.fingerprint not in self._calibrations:
            manifest = require(Manifest, plan.out_root, "scores", "score")
            scores = read_scores(plan.out_root, manifest)
            if len(scores.nats_B) < 2:
                raise GenmodError(
                    f"{plan.out_root}: only one calibration row has a score, expected at least 2; name "
                    "another split with score.calibration.split, or set score.calibration=null"
                )
            self._calibrations[plan.fingerprint] = scores, manifest
        return self._calibrations[plan.fingerprint]

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
            with measured(FIT):
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
    def finish(tables: Mapping[str, ScoreReceipt], calibration: Manifest | None) -> Manifest:
        rows = dataset.rows(plan.config.split)
        return score_manifest(plan, list(tables.values()), calibration, rows)

    return BulkJob(
        name=plan.name,
        title=title or f"score {plan.name}",
        out_root=plan.out_root,
        kind="scores",
        fingerprint=plan.fingerprint,
        manifest=Manifest,
        receipt=ScoreReceipt,
        units=[score_unit(rows) for rows in slices],
        plan=plan,
        inputs={
            "model": (plan.model_root, plan.model_digest),
            "dataset": (plan.data_root, plan.dataset_digest),
        },
        finish=finish,
        first=first,
        setup_task=WorkUnit(PREPARED, 0, {}) if _needs_setup(plan) else None,
        division=ScoreDivision(plan),
        section="score",
        max_quarantined=plan.config.max_quarantined,
        missing=count_unscored,
        missing_text="rows could not be scored",
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
