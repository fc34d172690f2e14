"""What ``--dry-run`` prints: the work of each stage, measured or derived, without starting any of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from genmod import storage
from genmod.config import Config
from genmod.costs.measured import sample_s_per_image, score_s_per_image, step_s_per_image
from genmod.data.sharding.plan import ShardPlan
from genmod.errors import ConfigError, DataError, Unscorable
from genmod.evaluation.jobs import EvaluationJob
from genmod.interface.model import GenerativeModel
from genmod.manifest import SPLITS, DatasetManifest, Manifest, find_done, load_manifest, require
from pipelines.commands import price
from pipelines.recipe.checks import Data, check
from pipelines.recipe.context import Context
from pipelines.recipe.progress import duration
from pipelines.recipe.selection import check_scorable, is_scorable
from pipelines.stages.run import STEPS


class Step(Config):
    """One piece of planned work."""

    stage: str
    name: str
    done: bool
    fingerprint: str | None
    """None while an input is not there yet."""
    work: dict[str, Any]

    def text(self) -> str:
        """One line for people."""
        metadata = ", ".join(f"{key} {_text(value)}" for key, value in self.work.items())
        state = "already done" if self.done else "to do"
        return f"{self.stage} {self.name}: {state}; {metadata}"


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def dry_run(stage: str, context: Context, *, show_recipe: bool) -> dict[str, Any]:
    """Print the plan of a stage for the command's models; start nothing. Returns the command's JSON result.

    Raises:
        ConfigError, DataError: the stage would refuse its work, and there are no prices to print instead.
    """
    if show_recipe:
        print(context.recipe.to_yaml(), end="")
    priced = price.prices(context.recipe)
    for line in price.text(context.recipe, priced):
        print(f"# {line}")
    try:
        steps = plan(stage, context)
    except (ConfigError, DataError) as missing:
        if not priced:
            raise
        steps = []
        print(f"# not planned further: {missing}")
    for step in steps:
        print(f"# {step.text()}")
    return {
        "stage": stage,
        "status": "planned",
        "output": context.recipe.root,
        "fingerprint": steps[-1].fingerprint if steps else None,
        "plan": [step.model_dump(mode="json") for step in steps],
        "price": priced,
    }


def plan(stage: str, context: Context) -> list[Step]:
    """The steps of a stage for the command's models.

    Raises:
        ConfigError: a stage would refuse its work, e.g. because its folder holds other work.
    """
    from pipelines.stages.dataset_versions import is_there, next_version
    from pipelines.stages.evaluate import evaluation_job
    from pipelines.stages.retrain import frozen_job, next_cycle

    stages = {"run": tuple(STEPS), "retrain": (*STEPS, "promote")}.get(stage, (stage,))
    judged = evaluation_job
    if stage == "retrain":
        judged = partial(frozen_job, context)
        context, first, data = plan_growth(context, next_cycle)
    elif stage == "shard" and context.recipe.data.append and is_there(context):
        context, first, data = plan_growth(context, next_version)
    else:
        first, data = plan_data(context)
    models = check(context, data, stages)
    if stage == "score" and not any(is_scorable(context, name) for name in models):
        check_scorable(context, context.models[0])  # says why
    steps = [first] if "shard" in stages else []
    for name, model in models.items():
        making = "distill" if context.recipe.entry(name).distills else "train"
        if making in stages:
            steps.append(_train(context, name, making, model, data))
        if "sample" in stages:
            steps.append(_sample(context, name, model))
        if "score" in stages:
            steps.append(_score(context, name, model, data))
    if "evaluate" in stages:
        steps += [_evaluate(context, judged(context, name)) for name in models]
    if "promote" in stages:
        steps += [_promote(context, name) for name in models]
    return steps


def plan_data(context: Context) -> tuple[Step, Data]:
    """The shard stage's plan, and the dataset as it is or will be."""
    from pipelines.jobs.sharding import plan_shard

    recipe = context.recipe
    shards = plan_shard(recipe.data, context.at("data"), recipe.seed)
    dataset = load_manifest(DatasetManifest, context.at("data"), "dataset")
    step = _shard(shards, done=dataset is not None)
    return step, Data.of(dataset) if dataset else Data.planned(shards)


def plan_growth(
    context: Context, version: Callable[[Context], tuple[Context, ShardPlan | None]]
) -> tuple[Context, Step, Data]:
    """The same for the dataset's next version, and the command's context on that version."""
    first = context.dataset()
    context, shards = version(context)
    if shards is not None:
        grown = Data.planned(shards)
        rows = {split: first.rows(split) + grown.rows[split] for split in SPLITS}
        return context, _shard(shards, done=False), replace(grown, rows=rows)
    data = context.dataset()
    work = {"images": sum(data.rows(split) for split in SPLITS), "spec": str(data.spec)}
    step = Step(stage="shard", name="data", done=True, fingerprint=data.fingerprint, work=work)
    return context, step, Data.of(data)


def _shard(shards: ShardPlan, done: bool) -> Step:
    work = {
        "images": shards.rows,
        "shards": shards.shards,
        "bytes": f"about {shards.size_bytes:,}",
        "spec": str(shards.spec),
    }
    return Step(stage="shard", name="data", done=done, fingerprint=shards.fingerprint, work=work)


def _found(root: str, kind: str, fingerprint: str) -> tuple[bool, str]:
    """Whether this very work is done, and its fingerprint. ConfigError if the folder holds other work."""
    schema = DatasetManifest if kind == "dataset" else Manifest
    return find_done(schema, root, kind, fingerprint) is not None, fingerprint


UNKNOWN: tuple[bool, None] = False, None
"""Of work whose input is not there yet."""


def _train(context: Context, name: str, stage: str, model: GenerativeModel, data: Data) -> Step:
    from pipelines.stages.train import job_of

    config = context.recipe.train_config(name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    done, fingerprint = UNKNOWN
    distills = context.recipe.entry(name).distills
    if data.manifest is not None and (distills is None or _model_is_there(context, distills)):
        job = job_of(context, name, data.manifest)
        done, fingerprint = _found(job.root, "model", job.fingerprint)
    work = {
        "images": config.nimg,
        "steps": -(-config.nimg // config.batch),
        "global batch": config.batch,
        "workers": config.workers,
        "parameters": parameters,
        "state": f"{20 * parameters:,} bytes a worker",  # weights, gradients, two moments, average
        "checkpoint": f"about {16 * parameters:,} bytes",
        "expected time": _expected(
            context, lambda: step_s_per_image(model), config.nimg, config.workers
        ),
    }
    return Step(stage=stage, name=name, done=done, fingerprint=fingerprint, work=work)


def _model_is_there(context: Context, name: str) -> bool:
    return load_manifest(Manifest, context.at("models", name), "model") is not None


def _sample(context: Context, name: str, model: GenerativeModel) -> Step:
    from pipelines.stages.sample import plan_of

    config = context.recipe.sample
    options = context.recipe.sample_options(name)
    done, fingerprint = UNKNOWN
    if _model_is_there(context, name):
        planned = plan_of(context, name)
        done, fingerprint = _found(planned.out_root, "dataset", planned.fingerprint)
    work = {
        "images": config.count,
        "shards": -(-config.count // config.shard_rows),
        "workers": config.workers,
        "sampler": options.sampler,
        "draws from p(x)": "yes" if options.draws_from_p else "no",
        "expected time": _expected(
            context, lambda: sample_s_per_image(model, options), config.count, config.workers
        ),
    }
    return Step(stage="sample", name=name, done=done, fingerprint=fingerprint, work=work)


def _score(context: Context, name: str, model: GenerativeModel, data: Data) -> Step:
    from pipelines.stages.score import plan_of

    config = context.recipe.score
    work: dict[str, Any] = {"split": config.split, "workers": config.workers}
    try:
        check_scorable(context, name)
    except Unscorable as reason:
        return Step(
            stage="score", name=name, done=False, fingerprint=None, work={"Unscorable": str(reason)}
        )
    done, fingerprint = UNKNOWN
    if data.manifest is not None and _model_is_there(context, name):
        planned = plan_of(context, name)
        done, fingerprint = _found(planned.out_root, "scores", planned.fingerprint)
    options, there = context.recipe.score_options(name), data.rows[config.split]
    if config.data is not None:
        root = storage.resolve(config.data)
        there = require(DatasetManifest, root, "dataset", "shard").rows(config.split)
    rows = min(there, config.max_rows or there, options.max_rows or there)
    work["rows"] = rows
    beside = 0
    if config.calibration is not None:
        most = min(config.calibration.rows, options.max_rows or config.calibration.rows)
        work["calibration rows"] = min(data.rows[config.calibration.split], most)
        same = config.data is None and config.calibration.split == config.split
        beside = 0 if same else work["calibration rows"]
    s_per_image = partial(score_s_per_image, model, options)
    work["expected time"] = _expected(context, s_per_image, rows + beside, config.workers)
    return Step(stage="score", name=name, done=done, fingerprint=fingerprint, work=work)


def _evaluate(context: Context, job: EvaluationJob) -> Step:
    config = context.recipe.evaluate
    done, fingerprint = UNKNOWN
    if all(storage.exists(url) for url in job.manifests()):
        done, fingerprint = _found(job.out_root, "evaluation", job.fingerprint())
    work = {"reference split": config.reference, "images at most": config.images}
    return Step(stage="evaluate", name=job.name, done=done, fingerprint=fingerprint, work=work)


def _promote(context: Context, name: str) -> Step:
    decision = load_manifest(Manifest, context.at("decision", name), "decision")
    done, fingerprint = decision is not None, decision.fingerprint if decision else None
    work = {"rules": ", ".join(context.recipe.promote.rules)}
    return Step(stage="promote", name=name, done=done, fingerprint=fingerprint, work=work)


def _expected(context: Context, s_per_image: Callable[[], float], images: int, workers: int) -> str:
    if context.recipe.cluster.gpus_per_worker > 0:
        return "not known here: the recipe asks for GPUs"
    return f"about {duration(s_per_image() * images / workers)} on cores like this one"
