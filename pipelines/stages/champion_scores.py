"""The champion's likelihood for a decision: the one by which it became the champion, or scored again.

Likelihoods are compared on the same rows by the same estimator. After ``retrain.reference_version`` adopts
other test rows, a rebuild, or a change of the scoring options, the champion's own scores are of other ones.
"""

from __future__ import annotations

from genmod import storage
from genmod.config import as_json
from genmod.errors import Unscorable
from genmod.evaluation.jobs import EvaluationJob
from genmod.evaluation.likelihood import BITS_PER_DIM
from genmod.evaluation.measure import metrics_from
from genmod.manifest import Manifest
from genmod.metrics.protocol import MetricResult
from genmod.promotion import LedgerModel
from pipelines.jobs.score_plan import ScoreJob, plan_score
from pipelines.jobs.scoring import score_models
from pipelines.recipe.context import Context
from pipelines.stages.bulk_stage import bulk_options
from pipelines.stages.champion_evidence import likelihoods_of_champion


def scored_again(
    context: Context, job: EvaluationJob, champion: LedgerModel, model_root: str, folder: str
) -> str | None:
    """URL of scores of the champion on the candidate's rows, made if they are not there.

    Args:
        context: the command.
        job: the candidate's evaluation, which is published.
        champion: of the promotion ledger.
        model_root: URL of its model.
        folder: of the champion's samples and evaluation for this decision.

    Returns:
        None if the champion's own likelihood is comparable, or if the champion has no density, or if no rule
        compares likelihoods of the candidate.
    """
    evaluation = context.snapshot.require(Manifest, job.out_root, "evaluation", "evaluate")
    candidate = _likelihoods(metrics_from(evaluation.metadata))
    rules = (name.partition("[")[0] for name in context.recipe.promote.rules)
    if BITS_PER_DIM not in rules or job.scores_root is None or not candidate:
        return None
    own = _likelihoods(likelihoods_of_champion(context, champion))
    if candidate == own:
        return None
    config = context.recipe.score.model_copy(update={"calibration": None, "data": None})
    data_root = job.scored_root or job.data_root
    out_root, options = (
        storage.join(folder, "scores"),
        as_json(context.recipe.score_options(job.name)),
    )
    scoring, seed = ScoreJob(job.name, model_root, data_root, out_root, options), job.seed
    try:
        plan_score(scoring, config, seed=seed, snapshot=context.snapshot)
    except Unscorable:
        return None
    context.progress.log(f"  {job.name}: the champion is scored on the rows of the candidate")
    score_models([scoring], config, seed=seed, options=bulk_options(context))
    return out_root


def _likelihoods(metrics: list[MetricResult] | tuple[MetricResult, ...]) -> list[str]:
    """The protocols of the likelihoods among some metrics."""
    values = [each.value for each in metrics if each.value.protocol.metric == BITS_PER_DIM]
    return [value.protocol_digest for value in values]
