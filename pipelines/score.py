"""The score stage: a log-likelihood for every row of a split, in bulk, as Ray Data jobs.

One piece of work is some rows of one shard and one Parquet file. Rows in are rows out, or the stage fails.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genmod import receipts
from genmod.config import Config, as_json, fingerprint, parse
from genmod.data.reader import RowReader
from genmod.errors import ConfigError, GenmodError
from genmod.likelihood.slices import (
    HELD_OUT,
    PURPOSE,
    Slice,
    prepare,
    rows_to_score,
    score_rows,
    slices,
)
from genmod.likelihood.table import (
    Moments,
    ScoreConfig,
    ScoreLabel,
    one_label,
    summary,
)
from genmod.manifest import (
    DatasetManifest,
    FileEntry,
    ImageSpec,
    Manifest,
    require,
    write_file,
)
from genmod.models.base import GenerativeModel, ScoreOptions, family
from genmod.training.published import model_config
from pipelines.bulk import ALONE, Job, Options, Piece, PieceActor, run_jobs, run_stage
from pipelines.context import Context, Result
from pipelines.run import check_scorable, narrowed, scorable_models

PREPARED = "prepared"
"""Name of the receipt of what is done before rows are scored."""

ROW_BYTES_AT_MOST = 160
"""Of one row of a table, with a key of the longest kind."""


@dataclass(frozen=True)
class ScoreJob:
    """One model to score a split with."""

    name: str
    model_root: str
    data_root: str
    out_root: str
    how: Mapping[str, Any]
    """The family's options."""


class ScorePlan(Config):
    """What a scoring job will do; everything that an actor needs to know of it."""

    name: str
    model_root: str
    data_root: str
    out_root: str
    model_digest: str
    dataset_digest: str
    family: str
    spec: ImageSpec
    config: ScoreConfig
    how: dict[str, Any]
    seed: int
    fingerprint: str
    tables: int
    rows: int
    size_bytes_at_most: int

    def options(self) -> ScoreOptions:
        """The family's options."""
        return parse(family(self.family).Score, self.how, f"model.{self.name}.score")

    def metadata(self) -> dict[str, Any]:
        """What each table says of itself beside its label."""
        return {
            "model": self.model_digest,
            "dataset": self.dataset_digest,
            "split": self.config.split,
            "weights": self.config.weights,
            "seed": self.seed,
            "how": self.how,
        }


class PreparedReceipt(Config):
    """What was fitted and measured before any row was scored; all tables are made with the same."""

    fingerprint: str
    how: dict[str, Any]
    """The family's options with nothing left open."""
    facts: dict[str, float]


class ScoreReceipt(Config):
    """What the maker of one table says of it."""

    fingerprint: str
    file: FileEntry
    rows: int
    nats: Moments
    label: ScoreLabel
    prepared: dict[str, float] = {}
    """Numbers measured before any row was scored."""


def plan_score(job: ScoreJob, config: ScoreConfig, *, seed: int) -> ScorePlan:
    """Check a job against its model and dataset and say what it will do. Writes nothing.

    Raises:
        Unscorable: the model has no density, or not as it is asked for.
        ConfigError: there is no such model or dataset, or they do not fit together.
    """
    manifest = require(Manifest, job.model_root, "model", "train, with the same --recipe and --set")
    dataset = require(DatasetManifest, job.data_root, "dataset", "shard")
    model = model_config(job.model_root)
    model_class = family(model.family)
    how = parse(model_class.Score, job.how, f"model.{job.name}.score")
    net = parse(model_class.Config, model.net, f"model.{job.name}.net")
    model_class.check_scorable(net, how)
    if model.spec != dataset.spec:
        raise ConfigError(
            f"model {job.name} is of images {model.spec}, but {job.data_root} has {dataset.spec}; "
            "score a dataset of the same images, or train a model on this one"
        )
    if how.max_rows is not None and how.max_rows < dataset.rows(config.split):
        config = config.model_copy(
            update={"max_rows": min(how.max_rows, config.max_rows or how.max_rows)}
        )
    if how.held_out_rows > dataset.rows(HELD_OUT):
        raise ConfigError(
            f"model.{job.name}.score wants {how.held_out_rows} held-out rows to fit itself to, but "
            f"split {HELD_OUT} has {dataset.rows(HELD_OUT)}; give that split more, or fit to fewer"
        )
    rows = rows_to_score(dataset, config)
    tables = sum(1 for _ in slices(dataset, config, seed))
    inputs = manifest.digest, dataset.digest
    return ScorePlan(
        name=job.name,
        model_root=job.model_root,
        data_root=job.data_root,
        out_root=job.out_root,
        model_digest=manifest.digest,
        dataset_digest=dataset.digest,
        family=model.family,
        spec=model.spec,
        config=config,
        how=as_json(how),
        seed=seed,
        fingerprint=fingerprint("score", PURPOSE, *inputs, config.result(), how, seed),
        tables=tables,
        rows=rows,
        size_bytes_at_most=rows * ROW_BYTES_AT_MOST + tables * 4_096,
    )


class ScoreActor(PieceActor):
    """Makes tables of log-likelihoods."""

    receipt = ScoreReceipt

    def make(self, plan: ScorePlan, piece: str, what: dict[str, Any]) -> ScoreReceipt:
        """One table."""
        model = self.model(plan.model_root, plan.model_digest, plan.config.weights)
        prepared = self._prepared(plan, model)
        how = parse(model.Score, prepared.how, f"model.{plan.name}.score")
        part = Slice.model_validate(what)
        reader = RowReader(plan.data_root, plan.spec, [part.shard])
        scores = score_rows(
            model, how, reader, part.rows(), plan.config.micro_batch, seed=plan.seed
        )
        reader.close()
        # Two kinds of accelerator may round differently, so each attempt there has a name of its own.
        name = piece if self.device == "cpu" else f"{piece}-{uuid.uuid4().hex[:8]}"
        data = scores.to_parquet(plan.spec.dims, plan.metadata(), plan.spec.levels)
        return ScoreReceipt(
            fingerprint=plan.fingerprint,
            file=write_file(plan.out_root, f"{name}.parquet", data),
            rows=len(part),
            nats=Moments.of(scores.nats_B),
            label=scores.label,
            prepared=prepared.facts,
        )

    def _prepared(self, plan: ScorePlan, model: GenerativeModel) -> PreparedReceipt:
        """What is fitted before rows are scored: once a job, by whichever actor is first."""
        how = plan.options()
        if not how.prepares:
            return PreparedReceipt(fingerprint=plan.fingerprint, how=plan.how, facts={})
        found = receipts.load(PreparedReceipt, plan.out_root, PREPARED, plan.fingerprint)
        if found is None:
            dataset = require(DatasetManifest, plan.data_root, "dataset", "shard")
            made = prepare(model, how, plan.data_root, dataset, seed=plan.seed)
            receipt = PreparedReceipt(
                fingerprint=plan.fingerprint, how=as_json(made.how), facts=dict(made.facts)
            )
            found = receipts.commit(plan.out_root, PREPARED, receipt)
        return found


def _job(plan: ScorePlan) -> Job[Manifest, ScoreReceipt]:
    dataset = require(DatasetManifest, plan.data_root, "dataset", "shard")
    parts = list(slices(dataset, plan.config, plan.seed))

    def finish(made: Sequence[ScoreReceipt]) -> Manifest:
        rows = sum(receipt.rows for receipt in made)
        if rows != plan.rows or rows != sum(receipt.nats.n for receipt in made):
            raise GenmodError(
                f"{plan.out_root}: {plan.rows} rows went in, {rows} came out; remove it and score again"
            )
        label = one_label(receipt.label for receipt in made)
        result = plan.config.result() | plan.metadata()
        return Manifest(
            kind="scores",
            fingerprint=plan.fingerprint,
            parents={"model": plan.model_digest, "dataset": plan.dataset_digest},
            files=tuple(receipt.file for receipt in made),
            facts=result
            | {"name": plan.name, "family": plan.family}
            | {"rows_of_files": [receipt.rows for receipt in made]}
            | {"prepared": made[0].prepared}
            | summary([receipt.nats for receipt in made], plan.spec.dims, label, plan.spec.levels),
        )

    return Job(
        name=plan.name,
        out_root=plan.out_root,
        kind="scores",
        fingerprint=plan.fingerprint,
        manifest=Manifest,
        receipt=ScoreReceipt,
        pieces=[Piece(part.name, len(part), as_json(part)) for part in parts],
        plan=plan,
        inputs={
            "model": (plan.model_root, plan.model_digest),
            "dataset": (plan.data_root, plan.dataset_digest),
        },
        finish=finish,
    )


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


def plan_of(context: Context, name: str) -> ScorePlan:
    """The plan for one of the recipe's models."""
    recipe = context.recipe
    how = as_json(recipe.score_options(name))
    out_root = context.at(recipe.score.output, name)
    job = ScoreJob(name, context.at("models", name), context.at("data"), out_root, how)
    return plan_score(job, recipe.score, seed=recipe.seed)


def stage(context: Context) -> Result:
    """The command: a log-likelihood of each row from each of the recipe's models that has a density."""
    models = scorable_models(context)
    if not models:
        check_scorable(context, context.models[0])  # says why
    context = narrowed(context, models)
    jobs = [_job(plan) for plan in [plan_of(context, name) for name in models]]
    return run_stage(context, "score", jobs, ScoreActor, context.recipe.score)
