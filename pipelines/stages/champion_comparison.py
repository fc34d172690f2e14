"""Measures the champion for a decision: its metrics, and the candidate's gains from paired samples.

The champion is sampled with the candidate's seed at the same indices. Samples that are there already, by the
run that made it the champion, are used. Both are compared with the same reference rows in one feature space.
"""

from __future__ import annotations

from collections.abc import Sequence

from genmod import storage
from genmod.config import as_json
from genmod.evaluation.comparison import ComparisonJob, differences_from
from genmod.evaluation.differences import MetricDifference
from genmod.evaluation.jobs import EvaluationJob
from genmod.evaluation.measure import metrics_from
from genmod.manifest import DatasetManifest, Manifest
from genmod.promotion import LedgerModel
from pipelines.jobs.sample_plan import SampleJob, plan_sample
from pipelines.jobs.sampling import sample_models
from pipelines.recipe.context import Context
from pipelines.stages.bulk_stage import bulk_options
from pipelines.stages.champion_evidence import check_champion, likelihoods_of_champion
from pipelines.stages.champion_scores import scored_again
from pipelines.stages.decisions import MeasuredChampion, champion_folder
from pipelines.stages.evaluate import run_evaluation_jobs
from pipelines.stages.known_models import sibling


def measure_champion(
    context: Context, cycle: Context, job: EvaluationJob, champion: LedgerModel
) -> MeasuredChampion:
    """Sample, evaluate and compare the champion. What is done already is not done again.

    Args:
        context: the command.
        cycle: where the candidate is, and where the champion's samples are written.
        job: the candidate's evaluation.
        champion: of the promotion ledger.

    Raises:
        ConfigError: the champion's model is not where the recipe allows it.
        DataError: another model is there.
    """
    folder = champion_folder(cycle, job.name, champion.digest)
    samples_root = _samples(context, cycle, job.name, champion, folder)
    model_root = _champion_root(context, job.name, champion)
    scores_root = scored_again(context, job, champion, model_root, folder)
    champion_job = job.model_copy(
        update={
            "samples_root": samples_root,
            "scores_root": scores_root,
            "unscored": "",
            "ood_root": None,
            "out_root": storage.join(folder, "evaluation"),
        }
    )
    comparison_job = _comparison(job, job.samples_root, samples_root, folder).model_copy(
        update=_scores_of_both(context, job, champion, scores_root)
    )
    jobs = [champion_job, comparison_job, *_on_fresh_rows(cycle, comparison_job, folder)]
    _, (evaluation, comparison, *fresh) = run_evaluation_jobs(context, jobs)
    gains = differences_from(comparison, comparison_job.out_root)
    fresh_gains = [
        gain
        for job, manifest in zip(jobs[2:], fresh, strict=True)
        for gain in differences_from(manifest, job.out_root)
    ]

    def more(images: int) -> Sequence[MetricDifference]:
        drawn = _compare_more(context, cycle, job, champion, folder=folder, images=images)
        names = {gain.metric for gain in drawn}
        return [*drawn, *(gain for gain in gains if gain.metric not in names)]  # of likelihoods

    champion_metrics = [*metrics_from(evaluation.metadata)]
    if scores_root is None:
        champion_metrics += likelihoods_of_champion(context, champion)
    return MeasuredChampion(champion_metrics, gains, fresh_gains, more)


def _scores_of_both(
    context: Context, job: EvaluationJob, champion: LedgerModel, again: str | None
) -> dict[str, str]:
    """Fields of a comparison: the scores by which both were evaluated; none if the champion has none now."""
    root = again or sibling(_champion_root(context, job.name, champion), "scores")
    if job.scores_root is None or root is None:
        return {}
    scores = context.snapshot.load(Manifest, root, "scores")
    if scores is None or scores.parents.get("model") != champion.digest:
        return {}
    return {"candidate_scores_root": job.scores_root, "champion_scores_root": root}


def _on_fresh_rows(cycle: Context, job: ComparisonJob, folder: str) -> list[ComparisonJob]:
    """The same comparison with the test rows of the cycle's own version, if they are other ones."""
    data_root = cycle.at("data")
    if data_root == job.data_root:
        return []
    out_root = storage.join(folder, "comparison-fresh")
    return [job.model_copy(update={"data_root": data_root, "out_root": out_root})]


def _compare_more(
    context: Context,
    cycle: Context,
    job: EvaluationJob,
    champion: LedgerModel,
    *,
    folder: str,
    images: int,
) -> Sequence[MetricDifference]:
    """Sample candidate and champion again with more images of the same noise; the candidate's gains.

    The images serve the comparison alone: what is published stays the recipe's ``sample.count``.
    """
    options = as_json(context.recipe.sample_options(job.name))
    more = storage.join(folder, f"images-{images}")
    roots = {
        "candidate": job.model_root,
        "champion": _champion_root(context, job.name, champion),
    }
    jobs = [
        SampleJob(job.name, model_root, storage.join(more, side, "samples"), options)
        for side, model_root in roots.items()
    ]
    config = context.recipe.sample.with_count(images)
    for each in jobs:
        sample_models([each], config, seed=cycle.recipe.seed, options=bulk_options(context))
    grown = job.model_copy(update={"config": job.config.model_copy(update={"images": images})})
    comparison = _comparison(grown, jobs[0].out_root, jobs[1].out_root, more)
    _, (manifest,) = run_evaluation_jobs(context, [comparison])
    return differences_from(manifest, comparison.out_root)


def _comparison(
    job: EvaluationJob, candidate_root: str, champion_root: str, folder: str
) -> ComparisonJob:
    """The paired comparison of samples at two URLs, by the protocol of the candidate's evaluation."""
    return ComparisonJob(
        name=job.name,
        data_root=job.data_root,
        features_root=job.features_root,
        candidate_root=candidate_root,
        champion_root=champion_root,
        out_root=storage.join(folder, "comparison"),
        config=job.config,
        seed=job.seed,
    )


def _champion_root(context: Context, name: str, champion: LedgerModel) -> str:
    """URL of the champion's model, after checking that it is there."""
    ledger = f"the promotion ledger at {context.ledger_url}"
    model_root = context.tracker.followed(champion.root, f"the model of {champion.label}", ledger)
    model = context.snapshot.model(model_root, f"train --model {name}")
    check_champion(champion, model_root, model.manifest.digest)
    return model_root


def _samples(
    context: Context, cycle: Context, name: str, champion: LedgerModel, folder: str
) -> str:
    """URL of the champion's samples with the candidate's seed and number of images."""
    model_root = _champion_root(context, name, champion)
    options = as_json(context.recipe.sample_options(name))
    config, seed = context.recipe.sample, cycle.recipe.seed
    own_root = storage.join(model_root.rpartition("/models/")[0], "samples", name)
    own = SampleJob(name, model_root, own_root, options)
    plan = plan_sample(own, config, seed=seed, snapshot=context.snapshot)
    found = context.snapshot.load(DatasetManifest, own_root, "dataset")
    if found is not None and found.fingerprint == plan.fingerprint:
        return own_root
    context.progress.log(f"  {name}: the champion is sampled with the candidate's noise")
    job = SampleJob(name, model_root, storage.join(folder, "samples"), options)
    sample_models([job], config, seed=seed, options=bulk_options(context))
    return job.out_root
