"""The evaluate stage: one feature space, one task for each model, and the report."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pydantic import BaseModel, FiniteFloat

from genmod.documents import validate
from genmod.errors import Unscorable
from genmod.evaluation.features_job import FeaturesJob
from genmod.evaluation.jobs import EvaluationJob
from genmod.evaluation.measure import metrics_from
from genmod.generation.sets import stream_of, stream_sets
from genmod.generation.synthetic import SAMPLE_SPLIT
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import Manifest
from pipelines.jobs.evaluating import EvaluationWork, run_evaluations
from pipelines.jobs.progress import NO_PROGRESS
from pipelines.jobs.report import ReportJob
from pipelines.recipe.checks import Data, check_evaluation
from pipelines.recipe.context import Context, Result
from pipelines.recipe.selection import check_scorable, check_selected
from pipelines.stages.cards import write_card


def stage(context: Context) -> Result:
    """Run the command: feature space, evaluations of the models, report. Finished jobs are skipped."""
    start_s = time.monotonic()
    check_selected(context)
    check_evaluation(context, Data.of(context.dataset()))
    jobs = [evaluation_job(context, name) for name in context.models]
    for job in jobs:
        job.check_inputs(context.snapshot)
        if line := larger_dataset_line(job.name, job.samples_root, context.snapshot):
            context.progress.log(line)
    evaluated, manifests = evaluate_models(context, features_job(context), jobs)
    if evaluated:
        _write_cards(context, jobs, manifests)
    report = report_job(context, jobs)
    worked = evaluated or report.done(context.snapshot) is None
    manifest = report.do(context.snapshot)
    run = context.tracker.run("report", ", ".join(context.models), manifest.fingerprint, {}, {})
    run.log_artifact(report.page_url)
    run.finish()
    return context.result(
        "evaluate",
        start_s,
        worked,
        context.at("evaluation"),
        manifest,
        report=report.page_url,
        models={
            job.name: {"output": job.out_root, "digest": evaluation.digest}
            for job, evaluation in zip(jobs, manifests, strict=True)
        },
    )


def _write_cards(
    context: Context, jobs: Sequence[EvaluationJob], manifests: Sequence[Manifest]
) -> None:
    """Add the metrics to the cards of the evaluated datasets."""
    for job, manifest in zip(jobs, manifests, strict=True):
        dataset = context.snapshot.dataset(job.samples_root, "sample")
        if not stream_of(dataset).stream:
            continue  # of another program, or of an older version
        write_card(
            context,
            job.name,
            job.samples_root,
            dataset,
            model_root=job.model_root,
            metrics=[result.value for result in metrics_from(manifest.metadata)],
        )


def larger_dataset_line(name: str, samples_root: str, snapshot: ManifestSnapshot) -> str:
    """Says that a model has more samples than are evaluated; empty if it has not.

    A request that was enlarged is a dataset next to the first one. The first one stays the evaluated one, so
    that evaluations and decisions do not depend on what else was generated.
    """
    first = snapshot.dataset(samples_root, f"sample --model {name}")
    if not stream_of(first).stream:
        return ""
    largest = stream_sets(samples_root, first, snapshot)[0]
    if largest.root == samples_root:
        return ""
    return (
        f"evaluate {name}: the {first.rows(SAMPLE_SPLIT):,} images of {samples_root}, not the "
        f"{largest.manifest.rows(SAMPLE_SPLIT):,} of {largest.root}; to evaluate more, request them "
        "first, in a new root"
    )


def evaluate_models(
    context: Context, fit: FeaturesJob, jobs: Sequence[EvaluationJob]
) -> tuple[bool, list[Manifest]]:
    """Fit the feature space, evaluate by it, log the metrics.

    Returns:
        Whether anything was left to do, and the manifest of each evaluation.
    """
    if fit.done(context.snapshot) is None:
        context.progress.log("  fitting the feature space")
    fitted, _ = run_evaluation_jobs(context, [fit])
    evaluated, manifests = run_evaluation_jobs(context, jobs, show_progress=True)
    for job, manifest in zip(jobs, manifests, strict=True):
        _track(context, job, manifest)
    return fitted or evaluated, manifests


def run_evaluation_jobs(
    context: Context, jobs: Sequence[EvaluationWork], show_progress: bool = False
) -> tuple[bool, list[Manifest]]:
    """Run the jobs that are not done as Ray tasks.

    Returns:
        Whether any job was left to do, and the manifest of each.
    """
    snapshot = context.snapshot
    missing = [job for job in jobs if job.done(snapshot) is None]
    if missing:
        run_evaluations(
            missing,
            context.connect,
            context.recipe.cluster,
            context.progress if show_progress else NO_PROGRESS,
            finished=len(jobs) - len(missing),
        )
        for job in missing:  # tasks have published them
            snapshot.reload(Manifest, job.out_root, job.kind)
    manifests = [job.done(snapshot) for job in jobs]
    return bool(missing), [manifest for manifest in manifests if manifest is not None]


def features_job(context: Context) -> FeaturesJob:
    """The job that fits the recipe's feature space."""
    return FeaturesJob(
        data_root=context.at("data"),
        out_root=context.at("features"),
        config=context.recipe.evaluate,
        seed=context.recipe.seed,
    )


def evaluation_job(context: Context, name: str) -> EvaluationJob:
    """The job that evaluates a model of the recipe. A model with a density must have been scored."""
    recipe = context.recipe
    scores_root, unscored = context.at("scores", name), ""
    try:
        check_scorable(context, name)
    except Unscorable as reason:
        scores_root, unscored = None, str(reason)
    ood_root = None
    if scores_root is not None and recipe.evaluate.ood is not None:
        ood_root = context.output_at(recipe.evaluate.ood, name)
    return EvaluationJob(
        name=name,
        data_root=context.at("data"),
        samples_root=context.at("samples", name),
        features_root=context.at("features"),
        out_root=context.at("evaluation", name),
        scores_root=scores_root,
        unscored=unscored,
        model_root=context.at("models", name),
        sample=recipe.entry(name).sample,
        ood_root=ood_root,
        config=recipe.evaluate,
        seed=recipe.seed,
    )


def report_job(context: Context, jobs: Sequence[EvaluationJob]) -> ReportJob:
    """The report on the evaluated models, in ``report``, or in ``report-NAMES`` if some are left out."""
    names = [job.name for job in jobs]
    everything = set(names) == set(context.recipe.model)
    return ReportJob(
        title=f"genmod report: {context.recipe.root.rstrip('/').rsplit('/', maxsplit=1)[-1]}",
        root=context.recipe.root,
        models=tuple(names),
        out_root=context.at("report" if everything else f"report-{'-'.join(sorted(names))}"),
        tracking=context.tracker.ui_command(),
    )


class _Scores(BaseModel):
    label: str = "none"
    mean_nats: FiniteFloat = 0.0
    mean_bits_per_dim: FiniteFloat = 0.0


class _Digest(BaseModel):
    digest: str


class _Features(_Digest):
    refused: str = ""
    """Why the features are not those of a classifier."""


class _ClassShares(BaseModel):
    classes: str
    samples: int
    of_samples: int
    reference: int
    of_reference: int


class _Evaluation(BaseModel):
    """What is tracked of an evaluation's metadata, besides its metrics."""

    scores: _Scores | None = None
    features: _Features
    reference: _Digest
    class_shares: _ClassShares | None = None

    def lines(self, name: str) -> list[str]:
        """What was decided about the model's comparison, for people."""
        lines: list[str] = []
        if self.features.refused:
            lines.append(
                f"evaluate {name}: principal components instead of a classifier's features: "
                f"{self.features.refused}"
            )
        if (shares := self.class_shares) is not None:
            lines.append(
                f"evaluate {name}: compared {shares.classes}: {shares.samples:,} of "
                f"{shares.of_samples:,} samples with {shares.reference:,} of {shares.of_reference:,} images"
            )
        return lines


def _track(context: Context, job: EvaluationJob, manifest: Manifest) -> None:
    """Log an evaluation's metrics and files as one run."""
    inputs = {
        name: (root, manifest.parents[name])
        for name, root in job.roots().items()
        if name in manifest.parents
    }
    params = context.recipe.evaluate.model_dump()
    run = context.tracker.run("evaluate", job.name, manifest.fingerprint, params, inputs)
    values: dict[str, float] = {}
    for result in metrics_from(manifest.metadata):
        metric = result.value.protocol.metric
        values[metric] = result.value.value
        values[f"{metric}.low"] = result.value.interval.low
        values[f"{metric}.high"] = result.value.interval.high
    where, remedy = (
        f"the evaluation of {job.name}",
        "remove its folder and run genmod evaluate again",
    )
    found = validate(_Evaluation, manifest.metadata, "an evaluation", where, remedy)
    if found.scores is not None:
        values |= found.scores.model_dump(exclude={"label"}, exclude_unset=True)
    for line in found.lines(job.name):
        context.progress.log(line)
    run.log_metrics(values, 0)
    for entry in manifest.files:
        run.log_artifact(f"{job.out_root}/{entry.path}")
    run.finish(
        metadata={
            "features": found.features.digest,
            "reference": found.reference.digest,
            "scores_label": "none" if found.scores is None else found.scores.label,
        }
    )
