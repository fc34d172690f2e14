"""The plan of a command: every stage of every model with its sizes, its state and its expected time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from genmod import storage
from genmod.config import Config
from genmod.costs.flops import parameters_of, training_bytes
from genmod.data.sharding.plan import ShardPlan
from genmod.errors import Unscorable
from genmod.evaluation.jobs import EvaluationJob
from genmod.generation.request import resolve_request, size_bytes_at_most
from genmod.interface.model import GenerativeModel
from genmod.manifest import SPLITS, DatasetManifest, Manifest
from genmod.manifest.class_match import Classes, match_classes
from pipelines.commands.expected_times import sampling_time, scoring_time, training_time
from pipelines.commands.probes import Measured, TimeProbe, measure_all
from pipelines.jobs.score_plan import ROW_BYTES_AT_MOST
from pipelines.recipe.checks import Data, check_recipe, check_rules, refuse_bad_policy
from pipelines.recipe.context import Context
from pipelines.recipe.selection import check_scorable, is_scorable
from pipelines.stages.dataset_versions import is_sharded, next_version
from pipelines.stages.decisions import find_decision
from pipelines.stages.evaluate import evaluation_job
from pipelines.stages.first_lines import sample_line, score_line, train_lines
from pipelines.stages.retrain import base_of, frozen_job, next_cycle
from pipelines.stages.run import STEPS
from pipelines.stages.sample import sample_plan, sampled_line
from pipelines.stages.score import score_plan, scored_line
from pipelines.stages.train import job_of

_WEIGHT_BYTES = 8
"""Of a trained model's file for each parameter: the weights and their average."""


class Step(Config):
    """One stage of one model in a plan."""

    stage: str
    name: str
    done: bool
    fingerprint: str | None = None
    """None while an input does not exist yet."""
    state: str = "to do"
    """``done``, ``to do``, or ``skipped: `` and the reason."""
    expected_s: float | None = None
    """Seconds that the work will take without the start of processes; None if done, skipped or not known."""
    measured_on: str = ""
    """Where ``expected_s`` was measured; empty without it."""
    work: dict[str, Any]
    """Sizes: ``images``, ``parameters``, ``bytes``, and others of the stage."""
    data: tuple[str, ...] = ()
    """Lines about the data that the stage uses: images, classes, labels."""


def plan(stage: str, context: Context) -> list[Step]:
    """The steps of a stage for the command's models.

    Raises:
        ConfigError: a stage would refuse its work, e.g. because its folder contains other work; or the gate
            would promote candidates that it must refuse.
    """
    stages = {"run": tuple(STEPS), "retrain": (*STEPS, "promote")}.get(stage, (stage,))
    job_for, deciding = evaluation_job, None
    if stage == "retrain":
        deciding = Data.of(base_of(context).dataset())
        job_for = partial(frozen_job, context)
        context, first, data = plan_growth(context, next_cycle)
    elif stage == "shard" and context.recipe.data.append and is_sharded(context):
        context, first, data = plan_growth(context, next_version)
    else:
        first, data = plan_data(context)
    models = check_recipe(context, data, stages)
    if "promote" in stages:
        check_rules(context, deciding or data)
    if stage == "promote":
        refuse_bad_policy(context, data)
    if stage == "score" and not any(is_scorable(context, name) for name in models):
        check_scorable(context, context.models[0])  # raises the reason
    steps: list[_Planned] = [(first, None)] if "shard" in stages else []
    for name, model in models.items():
        training = "distill" if context.recipe.entry(name).distills else "train"
        if training in stages:
            steps.append(_train(context, name, training, model, data))
        if "sample" in stages:
            steps.append(_sample(context, name, model, data))
        if "score" in stages:
            steps.append(_score(context, name, model, data))
    if "evaluate" in stages:
        steps += [(_evaluate(context, job_for(context, name)), None) for name in models]
    if "promote" in stages:
        steps += [(_promote(context, name), None) for name in models]
    times = measure_all(context, [None if step.done else measure for step, measure in steps])
    return [_timed(step, time) for (step, _), time in zip(steps, times, strict=True)]


_Planned = tuple[Step, TimeProbe | None]
"""A step, and how its time is measured if it is to do."""


def _timed(step: Step, time: Measured | None) -> Step:
    if time is None:
        return step
    update = {"expected_s": round(time.seconds, 1), "measured_on": time.place}
    return step.model_copy(update=update)


def plan_data(context: Context) -> tuple[Step, Data]:
    """The plan of the shard stage, and the dataset as it is or will be."""
    shards = context.dataset_plan.summary()
    dataset = context.snapshot.find_done(
        DatasetManifest, context.at("data"), "dataset", shards.fingerprint
    )
    step = _shard(shards, done=dataset is not None)
    return step, Data.of(dataset) if dataset else Data.planned(shards)


def plan_growth(
    context: Context, version: Callable[[Context], tuple[Context, ShardPlan | None]]
) -> tuple[Context, Step, Data]:
    """The plan of the dataset's next version, that version, and the command's context on it."""
    context, shards = version(context)
    if shards is not None:
        return context, _shard(shards, done=False), Data.planned(shards)
    data = context.dataset()
    work = {"images": sum(data.rows(split) for split in SPLITS), "spec": str(data.spec)}
    step = _step("shard", "data", done=True, fingerprint=data.fingerprint, work=work)
    return context, step, Data.of(data)


def _step(
    stage: str,
    name: str,
    *,
    done: bool,
    fingerprint: str | None,
    work: dict[str, Any],
    data: Sequence[str] = (),
) -> Step:
    """A step that is done or to do."""
    return Step(
        stage=stage,
        name=name,
        done=done,
        fingerprint=fingerprint,
        state="done" if done else "to do",
        work=work,
        data=tuple(data),
    )


def _shard(shards: ShardPlan, done: bool) -> Step:
    work = {
        "images": shards.rows,
        "shards": shards.shards,
        "bytes": shards.size_bytes,
        "spec": str(shards.spec),
        "census": shards.census.model_dump(mode="json"),
    }
    return _step("shard", "data", done=done, fingerprint=shards.fingerprint, work=work)


def _lookup(context: Context, root: str, kind: str, fingerprint: str) -> tuple[bool, str]:
    """Whether this work is done, and its fingerprint. ConfigError if the folder has other work."""
    schema = DatasetManifest if kind == "dataset" else Manifest
    return context.snapshot.find_done(schema, root, kind, fingerprint) is not None, fingerprint


_UNKNOWN: tuple[bool, None] = False, None
"""Work whose input does not exist yet."""


def _train(context: Context, name: str, stage: str, model: GenerativeModel, data: Data) -> _Planned:
    config = context.recipe.train_config(name)
    parameters = parameters_of(model)
    done, fingerprint = _UNKNOWN
    distills = context.recipe.entry(name).distills
    if data.manifest is not None and (distills is None or _model_exists(context, distills)):
        job = job_of(context, name, data.manifest)
        done, fingerprint = _lookup(context, job.root, "model", job.fingerprint)
    work = {
        "images": config.total_nimg,
        "steps": config.total_nimg // config.batch,
        "global batch": config.batch,
        "workers": config.most_workers,
        "parameters": parameters,
        "bytes": _WEIGHT_BYTES * parameters,
        "memory bytes of a worker": training_bytes(parameters),
        "checkpoint bytes": 16 * parameters,
    }
    measure = TimeProbe(partial(training_time, model, config), config.most_workers)
    lines = train_lines(data)
    step = _step(stage, name, done=done, fingerprint=fingerprint, work=work, data=lines)
    return step, measure


def _model_exists(context: Context, name: str) -> bool:
    return context.snapshot.load(Manifest, context.at("models", name), "model") is not None


def _sample(context: Context, name: str, model: GenerativeModel, data: Data) -> _Planned:
    config = context.recipe.sample
    options = context.recipe.sample_options(name)
    done, fingerprint = _UNKNOWN
    if config.model is not None or _model_exists(context, name):
        planned = sample_plan(context, name)
        done, fingerprint = planned.done, planned.fingerprint
        request, line = planned.request, sampled_line(planned)
    else:
        request = resolve_request(config, model.spec, data.class_names, data.empty_classes)
        line = sample_line(name, request, model.spec, data.class_names)
    shards = -(-request.rows // config.shard_rows)
    work = {
        "images": request.rows,
        "shards": shards,
        "bytes": size_bytes_at_most(request.rows, shards, model.spec),
        "workers": config.workers,
        "sampler": options.sampler,
        "draws from p(x)": options.draws_from_p and not config.filters.is_on,
    }
    if config.filters.is_on:
        work["filters"] = ", ".join(config.filters.result())
    call = partial(sampling_time, model, options, request, config)
    step = _step("sample", name, done=done, fingerprint=fingerprint, work=work, data=[line])
    return step, TimeProbe(call, config.workers, shards)


def _score(context: Context, name: str, model: GenerativeModel, data: Data) -> _Planned:
    config = context.recipe.score
    work: dict[str, Any] = {"split": config.split, "workers": config.workers}
    try:
        check_scorable(context, name)
    except Unscorable as error:
        state = f"skipped: {error.summary(name)}"
        return Step(stage="score", name=name, done=False, state=state, work=work), None
    done, fingerprint = _UNKNOWN
    line = ""
    if data.manifest is not None and _model_exists(context, name):
        planned = score_plan(context, name)
        line = scored_line(planned)
        done, fingerprint = _lookup(context, planned.out_root, "scores", planned.fingerprint)
    options, split_rows = context.recipe.score_options(name), data.rows[config.split]
    if config.data is not None:
        split_rows = context.snapshot.dataset(storage.resolve(config.data)).rows(config.split)
    rows = min(split_rows, config.max_rows or split_rows, options.max_rows or split_rows)
    work |= {"images": rows, "bytes": rows * ROW_BYTES_AT_MOST}
    calibration_rows = 0
    if config.calibration is not None:
        most = min(config.calibration.rows, options.max_rows or config.calibration.rows)
        work["calibration images"] = min(data.rows[config.calibration.split], most)
        same = config.data is None and config.calibration.split == config.split
        calibration_rows = 0 if same else work["calibration images"]
    line = line or _score_line(context, name, rows, data)
    rows += calibration_rows
    step = _step("score", name, done=done, fingerprint=fingerprint, work=work, data=[line])
    units = -(-rows // config.rows_per_task)
    return step, TimeProbe(
        partial(scoring_time, model, options, rows, config), config.workers, units
    )


def _score_line(context: Context, name: str, rows: int, data: Data) -> str:
    """What the stage says of the rows that it scores.

    Raises:
        ConfigError: they are of classes that the model does not know.
    """
    config, spec, label_map = context.recipe.score, data.spec, ()
    root = context.at("data") if config.data is None else storage.resolve(config.data)
    if config.data is not None:
        scored = context.snapshot.dataset(root)
        known = Classes(f"model {name}", data.spec.classes, data.class_names)
        used = scored.classes_with_rows(config.split)
        spec, label_map = scored.spec, match_classes(scored.classes(root), known, used)
    return score_line(name, rows, spec, config.split, root, label_map=label_map)


def _evaluate(context: Context, job: EvaluationJob) -> Step:
    config = context.recipe.evaluate
    done, fingerprint = _UNKNOWN
    if job.has_inputs(context.snapshot):
        fingerprint = job.fingerprint(job.inputs(context.snapshot))
        done = job.done(context.snapshot) is not None
    work = {"reference split": config.reference, "images at most": config.images}
    return _step("evaluate", job.name, done=done, fingerprint=fingerprint, work=work)


def _promote(context: Context, name: str) -> Step:
    decision = find_decision(context, name)
    fingerprint = decision.fingerprint if decision else None
    work = {"rules": ", ".join(context.recipe.promote.rules)}
    return _step("promote", name, done=decision is not None, fingerprint=fingerprint, work=work)
