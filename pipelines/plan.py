"""What ``--dry-run`` prints: the work of each stage, measured or derived, without starting any of it."""

from __future__ import annotations

from typing import Any

from genmod.config import Config
from genmod.cost import sample_s_per_image, score_s_per_image, step_s_per_image
from genmod.data.plan import ShardPlan
from genmod.errors import Unscorable
from genmod.manifest import SPLITS, DatasetManifest, ImageSpec, load
from genmod.models.base import DataStats, GenerativeModel, ModelConfig
from pipelines.context import Context, model_config
from pipelines.progress import duration
from pipelines.run import STEPS, check_scorable


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
        facts = ", ".join(f"{key} {_text(value)}" for key, value in self.work.items())
        state = "already done" if self.done else "to do"
        return f"{self.stage} {self.name}: {state}; {facts}"


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def plan(stage: str, context: Context) -> list[Step]:
    """The steps of a stage for the command's models."""
    stages = {"run": STEPS, "retrain": (*STEPS, "promote")}.get(stage, (stage,))
    if stage == "retrain":
        context, planned = plan_growth(context)
    else:
        planned = plan_data(context)
    steps: list[Step] = []
    if "shard" in stages:
        steps.append(planned[0])
    for name in context.models:
        model = planned_model(context, name, planned[1], planned[2])
        if "train" in stages:
            steps.append(_train(context, name, model))
        if "sample" in stages:
            steps.append(_sample(context, name, model))
        if "score" in stages:
            steps.append(_score(context, name, model, planned[1]))
    if "evaluate" in stages:
        for name in context.models:
            steps.append(_evaluate(context, name))
    if "promote" in stages:
        for name in context.models:
            steps.append(_promote(context, name))
    return steps


def plan_data(context: Context) -> tuple[Step, DatasetManifest | None, ImageSpec]:
    """The shard stage's plan, the dataset if it is there, and what its images will be."""
    from pipelines.shard import plan_shard

    recipe = context.recipe
    shards = plan_shard(recipe.data, context.at("data"), recipe.seed)
    dataset = load(DatasetManifest, context.at("data"), "dataset")
    done = dataset is not None and dataset.fingerprint == shards.fingerprint
    return _shard(shards, done), dataset, shards.spec


def plan_growth(
    context: Context,
) -> tuple[Context, tuple[Step, DatasetManifest | None, ImageSpec]]:
    """The same for the dataset's next version, and the command's context on that version."""
    from pipelines.retrain import next_cycle

    context, shards = next_cycle(context)
    if shards is not None:
        return context, (_shard(shards, done=False), None, shards.spec)
    data = context.dataset()
    work = {"images": sum(data.rows(split) for split in SPLITS), "spec": str(data.spec)}
    step = Step(stage="shard", name="data", done=True, fingerprint=data.fingerprint, work=work)
    return context, (step, data, data.spec)


def _shard(shards: ShardPlan, done: bool) -> Step:
    work = {
        "images": shards.rows,
        "shards": shards.shards,
        "bytes": f"about {shards.size_bytes:,}",
        "spec": str(shards.spec),
    }
    return Step(stage="shard", name="data", done=done, fingerprint=shards.fingerprint, work=work)


def planned_model(
    context: Context, name: str, dataset: DatasetManifest | None, spec: ImageSpec
) -> GenerativeModel:
    """The model that would be trained, built; with stand-in statistics if the data is not there yet."""
    if dataset is not None:
        return model_config(context.recipe, name, dataset).build(context.recipe.seed)
    entry = context.recipe.entry(name)
    stats = DataStats(mean=(0.0,) * spec.channels, std=(0.5,) * spec.channels)
    config = ModelConfig(family=entry.family, net=entry.net, spec=spec, stats=stats)
    return config.build(context.recipe.seed)


def _done(context: Context, *parts: str, kind: str) -> tuple[bool, str | None]:
    from genmod.manifest import Manifest

    schema = DatasetManifest if kind == "dataset" else Manifest
    found = load(schema, context.at(*parts), kind)
    return found is not None, found.fingerprint if found else None


def _train(context: Context, name: str, model: GenerativeModel) -> Step:
    config = context.recipe.train_config(name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    done, fingerprint = _done(context, "models", name, kind="model")
    work = {
        "images": config.nimg,
        "steps": -(-config.nimg // config.batch),
        "global batch": config.batch,
        "workers": config.workers,
        "parameters": parameters,
        "state": f"{20 * parameters:,} bytes a worker",  # weights, gradients, two moments, average
        "checkpoint": f"about {16 * parameters:,} bytes",
        "expected time": _expected(context, step_s_per_image(model), config.nimg, config.workers),
    }
    return Step(stage="train", name=name, done=done, fingerprint=fingerprint, work=work)


def _sample(context: Context, name: str, model: GenerativeModel) -> Step:
    config = context.recipe.sample
    how = context.recipe.sample_options(name)
    done, fingerprint = _done(context, config.output, name, kind="dataset")
    work = {
        "images": config.count,
        "shards": -(-config.count // config.shard_rows),
        "workers": config.workers,
        "sampler": how.sampler,
        "draws from p(x)": "yes" if how.draws_from_p else "no",
        "expected time": _expected(
            context, sample_s_per_image(model, how), config.count, config.workers
        ),
    }
    return Step(stage="sample", name=name, done=done, fingerprint=fingerprint, work=work)


def _score(
    context: Context, name: str, model: GenerativeModel, dataset: DatasetManifest | None
) -> Step:
    config = context.recipe.score
    done, fingerprint = _done(context, config.output, name, kind="scores")
    work: dict[str, Any] = {"split": config.split, "workers": config.workers}
    try:
        check_scorable(context, name)
    except Unscorable as reason:
        return Step(
            stage="score", name=name, done=False, fingerprint=None, work={"Unscorable": str(reason)}
        )
    if dataset is not None:
        rows = min(dataset.rows(config.split), config.max_rows or dataset.rows(config.split))
        how = context.recipe.score_options(name)
        work["rows"] = rows
        work["expected time"] = _expected(
            context, score_s_per_image(model, how), rows, config.workers
        )
    return Step(stage="score", name=name, done=done, fingerprint=fingerprint, work=work)


def _evaluate(context: Context, name: str) -> Step:
    config = context.recipe.evaluate
    done, fingerprint = _done(context, "evaluation", name, kind="evaluation")
    work = {"reference split": config.reference, "images at most": config.images}
    return Step(stage="evaluate", name=name, done=done, fingerprint=fingerprint, work=work)


def _promote(context: Context, name: str) -> Step:
    done, fingerprint = _done(context, "verdict", name, kind="verdict")
    work = {"rules": ", ".join(context.recipe.promote.rules)}
    return Step(stage="promote", name=name, done=done, fingerprint=fingerprint, work=work)


def _expected(context: Context, s_per_image: float, images: int, workers: int) -> str:
    if context.recipe.cluster.gpus_per_worker > 0:
        return "not known here: the recipe asks for GPUs"
    return f"about {duration(s_per_image * images / workers)} on cores like this one"
