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
from genmod.manifest import DatasetManifest, FileEntry, Manifest, require, write_file
from genmod.scoring.calibrated import add_ood_scores, calibration_metadata, read_scores
from genmod.scoring.ood_scores import count_rare
from genmod.scoring.table import (
    RunningMoments,
    ScoreConfig,
    ScoreLabel,
    Scores,
    common_label,
    summary,
)
from genmod.scoring.work_units import ShardSlice, prepare, score_rows, shard_slices
from pipelines.jobs.bulk import ALONE, Job, Options, WorkUnit, WorkUnitActor, run_jobs
from pipelines.jobs.score_plan import ScoreJob, ScorePlan, plan_score

PREPARED = "prepared"
"""Name of the receipt of what is done before rows are scored."""


class PreparedReceipt(Config):
    """What was fitted and measured before any row was scored; all tables are made with the same."""

    fingerprint: str
    options: dict[str, Any]
    """The family's options with nothing left open."""
    metadata: dict[str, float]


class ScoreReceipt(Config):
    """What the maker of one table says of it."""

    fingerprint: str
    file: FileEntry
    rows: int
    nats: RunningMoments
    label: ScoreLabel
    prepared: dict[str, float] = {}
    """Numbers measured before any row was scored."""
    rare: dict[str, int] = {}
    """How many rows have a p below :data:`RARE_P`, by column."""


class ScoreActor(WorkUnitActor):
    """Makes tables of log-likelihoods."""

    receipt = ScoreReceipt

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._known_by_fingerprint: dict[str, Scores] = {}

    def do(self, task: Task) -> TaskResult:
        """A table, or what is done once before them."""
        if task["piece"] != PREPARED:
            return super().do(task)
        plan = self.plans[task["job"]]
        model = self.model(plan.model_root, plan.model_digest, plan.config.weights)
        return {"piece": PREPARED, "receipt": as_json(self._prepared(plan, model))}

    def make(self, plan: ScorePlan, piece: str, what: dict[str, Any]) -> ScoreReceipt:
        """One table."""
        model = self.model(plan.model_root, plan.model_digest, plan.config.weights)
        prepared, known = self._prepared(plan, model), self._known(plan)
        options = parse(model.Score, prepared.options, f"model.{plan.name}.score")
        part = ShardSlice.model_validate(what)
        reader = RowReader(plan.data_root, plan.spec, [part.shard])
        scores = score_rows(
            model,
            options,
            reader,
            part.rows(),
            plan.config.micro_batch,
            seed=plan.seed,
            known=known if plan.is_calibrated_by_own_rows else None,
        )
        reader.close()
        if known is not None:
            own = plan.is_calibrated_by_own_rows
            scores = add_ood_scores(scores, known, plan.spec, own=own)
        # Two kinds of accelerator may round differently, so each attempt there has a name of its own.
        name = piece if self.device == "cpu" else f"{piece}-{uuid.uuid4().hex[:8]}"
        data = scores.to_parquet(plan.spec.dims, plan.metadata(), plan.spec.levels)
        return ScoreReceipt(
            fingerprint=plan.fingerprint,
            file=write_file(plan.out_root, f"{name}.parquet", data),
            rows=len(part),
            nats=RunningMoments.of(scores.nats_B),
            label=scores.label,
            prepared=prepared.metadata,
            rare=count_rare(scores.columns),
        )

    def _known(self, plan: ScorePlan) -> Scores | None:
        """The scores of the calibration rows, read once."""
        if plan.calibration is None:
            return None
        wanted = plan.calibration.fingerprint
        if wanted not in self._known_by_fingerprint:
            root = plan.calibration.out_root
            manifest = require(Manifest, root, "scores", "score")
            self._known_by_fingerprint[wanted] = read_scores(root, manifest)
        return self._known_by_fingerprint[wanted]

    def _prepared(self, plan: ScorePlan, model: GenerativeModel) -> PreparedReceipt:
        """What is fitted before rows are scored: once a job, by the first actor that wants it."""
        if plan.calibration is not None:
            return self._prepared(plan.calibration, model)
        options = plan.parsed_options()
        if not options.prepares:
            return PreparedReceipt(fingerprint=plan.fingerprint, options=plan.options, metadata={})
        found = receipts.load_receipt(PreparedReceipt, plan.out_root, PREPARED, plan.fingerprint)
        if found is None:
            own = require(DatasetManifest, plan.own_root, "dataset", "shard")
            made = prepare(model, options, plan.own_root, own, seed=plan.seed)
            metadata = dict(
                sorted(made.metadata.items())
            )  # as one who reads the receipt finds them
            receipt = PreparedReceipt(
                fingerprint=plan.fingerprint, options=as_json(made.options), metadata=metadata
            )
            found = receipts.commit(plan.out_root, PREPARED, receipt)
        return found


def _job(plan: ScorePlan) -> Job[Manifest, ScoreReceipt]:
    dataset = require(DatasetManifest, plan.data_root, "dataset", "shard")
    parts = list(shard_slices(dataset, plan.config, plan.seed))

    def finish(made: Sequence[ScoreReceipt]) -> Manifest:
        rows = sum(receipt.rows for receipt in made)
        if rows != plan.rows or rows != sum(receipt.nats.n for receipt in made):
            raise GenmodError(
                f"{plan.out_root}: {plan.rows} rows went in, {rows} came out; remove it and score again"
            )
        label = common_label(receipt.label for receipt in made)
        result = plan.config.result() | plan.metadata()
        parents = {"model": plan.model_digest, "dataset": plan.dataset_digest}
        told: dict[str, Any] = {}
        if plan.calibration is not None:
            root = plan.calibration.out_root
            calibration = require(Manifest, root, "scores", "score")
            parents["calibration"] = calibration.digest
            known = read_scores(root, calibration)
            told = calibration_metadata(known, plan.spec) | {
                "calibration_split": plan.calibration.config.split,
                "rare": {
                    name: sum(receipt.rare[name] for receipt in made) / rows
                    for name in made[0].rare
                },
            }
        return Manifest(
            kind="scores",
            fingerprint=plan.fingerprint,
            parents=parents,
            files=tuple(receipt.file for receipt in made),
            metadata=result
            | {"name": plan.name, "family": plan.family}
            | {"rows_of_files": [receipt.rows for receipt in made]}
            | {"prepared": made[0].prepared}
            | told
            | summary([receipt.nats for receipt in made], plan.spec.dims, label, plan.spec.levels),
        )

    return Job(
        name=plan.name,
        out_root=plan.out_root,
        kind="scores",
        fingerprint=plan.fingerprint,
        manifest=Manifest,
        receipt=ScoreReceipt,
        pieces=[WorkUnit(part.name, len(part), as_json(part)) for part in parts],
        plan=plan,
        inputs={
            "model": (plan.model_root, plan.model_digest),
            "dataset": (plan.data_root, plan.dataset_digest),
        },
        finish=finish,
        first=None if plan.calibration is None else _job(plan.calibration),
        head=WorkUnit(PREPARED, 0, {}) if _waits_for_fit(plan) else None,
    )


def _waits_for_fit(plan: ScorePlan) -> bool:
    """Whether something is to be fitted for this job alone, and is not yet."""
    if plan.calibration is not None or not plan.parsed_options().prepares:
        return False
    return receipts.load_receipt(PreparedReceipt, plan.out_root, PREPARED, plan.fingerprint) is None


def score_models(
    jobs: Sequence[ScoreJob], config: ScoreConfig, *, seed: int, options: Options = ALONE
) -> list[Manifest]:
    """Score with several models in one Ray Data execution, whose start-up is then paid once.

    What is done already is only looked up, and a job that was begun is gone on with.

    Raises:
        Unscorable: a model has no density; nothing was started.
        ConfigError: a model and the dataset do not fit, or a folder holds other work.
        GenmodError: pieces failed; all others are done and stay done.
    """
    plans = [plan_score(job, config, seed=seed) for job in jobs]
    return run_jobs([_job(plan) for plan in plans], ScoreActor, config, options)


def score(job: ScoreJob, config: ScoreConfig, *, seed: int, options: Options = ALONE) -> Manifest:
    """Score with one model: :func:`score_models` of a list of one."""
    return score_models([job], config, seed=seed, options=options)[0]
