"""What is known of the champion from its evaluation: metrics, likelihoods, and the classes that it lacks."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from genmod.budget import BUDGET
from genmod.documents import validate
from genmod.errors import ConfigError, DataError, sanitize
from genmod.evaluation.likelihood import BITS_PER_DIM
from genmod.evaluation.measure import metrics_from
from genmod.manifest import Manifest
from genmod.metrics.protocol import MetricResult
from genmod.promotion import Evidence, LedgerModel
from pipelines.recipe.context import Context


class _Classes(BaseModel):
    """The classes of the dataset that a model was evaluated on."""

    class_names: tuple[Annotated[str, Field(max_length=1_000)], ...] = Field(
        default=(), max_length=BUDGET.classes
    )
    classes: int = Field(default=0, ge=0, le=BUDGET.classes)


def metrics_of_champion(context: Context, champion: LedgerModel) -> tuple[MetricResult, ...]:
    """The metrics by which a model became the champion.

    Raises:
        ConfigError: it has none, or they are not where the recipe allows it.
        DataError: they are of another model.
    """
    if champion.evaluation is None:
        raise ConfigError(
            f"the champion, {champion.label}, has no evaluation to compare with; genmod retrain evaluates it "
            "again, or choose another champion with genmod promote --pin or --rollback"
        )
    return metrics_from(_evaluation(context, champion, champion.evaluation).metadata)


def lacking_class(context: Context, candidate: Manifest, champion: LedgerModel) -> str:
    """In words, which class of a candidate's evaluation the champion's lacks; empty if none.

    Raises:
        ConfigError: the champion's evaluation is not where the recipe allows it.
        DataError: one of the two is broken.
    """
    if champion.evaluation is None:
        return ""
    before = _evaluation(context, champion, champion.evaluation)
    known, now = (
        validate(_Classes, m.metadata, "an evaluation", where, "run genmod evaluate again")
        for m, where in ((before, champion.label), (candidate, "the candidate's evaluation"))
    )
    new = [name for name in now.class_names if name not in known.class_names]
    if not now.class_names and now.classes > known.classes > 0:
        new = [str(now.classes - 1)]
    return f"the champion, {champion.label}, lacks class {sanitize(new[0][:80])!r}" if new else ""


def _evaluation(context: Context, champion: LedgerModel, evidence: Evidence) -> Manifest:
    """The evaluation by which a model became the champion."""
    ledger = f"the promotion ledger at {context.ledger_url}"
    what = f"the evaluation of {champion.label}"
    root = context.tracker.followed(evidence.root, what, ledger)
    manifest = context.snapshot.require(Manifest, root, "evaluation", "evaluate")
    check_champion(champion, root, str(manifest.metadata.get("model_digest")))
    return manifest


def likelihoods_of_champion(context: Context, champion: LedgerModel) -> list[MetricResult]:
    """The likelihoods by which a model became the champion, if a rule names one; they need no samples."""
    named = {name.partition("[")[0] for name in context.recipe.promote.rules}
    if BITS_PER_DIM not in named or champion.evaluation is None:
        return []
    metrics = metrics_of_champion(context, champion)
    return [each for each in metrics if each.value.protocol.metric == BITS_PER_DIM]


def check_champion(champion: LedgerModel, root: str, digest: str) -> None:
    """Raise DataError if a folder is not of the model that is the champion."""
    if digest != champion.digest:
        raise DataError(
            f"{root} is of the model {digest[:12]}, but the champion in the promotion ledger is "
            f"{champion.label}; restore that folder, or choose another champion with genmod promote --pin"
        )
