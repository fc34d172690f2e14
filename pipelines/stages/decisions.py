"""Decisions on models: made by the gate, published, and found again.

A decision compares a candidate with one champion. The first is in ``decision/NAME``; one that is made again
against another champion is in ``decision/NAME/against-CHAMPION``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel

from cluster.metrics import RECORDER
from genmod import storage
from genmod.config import as_json, fingerprint
from genmod.documents import validate
from genmod.errors import DataError
from genmod.evaluation.differences import MetricDifference, ReportedGain
from genmod.evaluation.gate import Decision, decide
from genmod.evaluation.inputs import checked_decision
from genmod.evaluation.looks import count_decision
from genmod.evaluation.measure import metrics_from
from genmod.evaluation.policy import PromoteConfig
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import Manifest, publish
from genmod.metrics.protocol import MetricResult
from genmod.promotion import LedgerModel, Promotions
from pipelines.recipe.context import Context
from pipelines.stages.champion_evidence import lacking_class, metrics_of_champion
from pipelines.stages.decision_words import Retrained


@dataclass(frozen=True)
class MeasuredChampion:
    """What a candidate is compared with."""

    metrics: Sequence[MetricResult]
    """The champion's metrics, by the protocol of the candidate's."""
    gains: Sequence[MetricDifference] = ()
    """Of the candidate, from samples with the same noise; empty if there are none."""
    fresh: Sequence[MetricDifference] = ()
    """The same gains on the test rows of the newest version of the dataset, for the record alone."""
    more: Callable[[int], Sequence[MetricDifference]] | None = None
    """Samples both models again with a number of images, and returns the gains; None if it cannot."""


MeasureChampion = Callable[[LedgerModel], MeasuredChampion]
"""Measures a champion."""

_AGAIN = "against-"
"""How folders of decisions that were made again start; the start of the champion's digest follows."""


class Decided(BaseModel):
    """What a decision's manifest says."""

    promote: bool
    reasons: tuple[str, ...]
    candidate: dict[str, Any]
    champion: dict[str, Any] | None


def decided(decision: Manifest) -> Decided:
    """What a decision says. DataError if it says something else."""
    where, remedy = f"decision {decision.digest[:12]}", "remove its folder and run the stage again"
    return validate(Decided, decision.metadata, "a decision on a model", where, remedy)


def find_decision(context: Context, name: str) -> Manifest | None:
    """The published decision on a model of the recipe, None if there is none."""
    root = context.at("decision", name)
    decision = context.snapshot.load(Manifest, root, "decision")
    return checked_decision(decision, root) if decision is not None else None


@dataclass(frozen=True)
class PublishedDecision:
    """A decision, where it is, and whether this command made it."""

    manifest: Manifest
    root: str
    is_new: bool


def champion_folder(context: Context, name: str, digest: str) -> str:
    """URL of the folder in which a champion is sampled and evaluated for decisions on a model of the recipe.

    Args:
        context: where the candidate is.
        name: of the model in the recipe.
        digest: of the champion's model.
    """
    return context.at("champion", name, digest[:16])


def decision_work(model: str, evaluation: str, rules: PromoteConfig) -> str:
    """Fingerprint of a decision on a model, by the digests of the model and its evaluation."""
    return fingerprint("decision", model, evaluation, rules.result())


def decide_on(
    context: Context,
    name: str,
    candidate: LedgerModel,
    promotions: Promotions,
    measure: MeasureChampion | None,
    *,
    retrained: Retrained | None = None,
) -> PublishedDecision:
    """The decision on a candidate that counts now; made and published if there is none.

    Args:
        context: the command.
        name: of the model in the recipe.
        candidate: the model, with its evaluation.
        promotions: the history of champions.
        measure: as for :func:`pipelines.stages.promote.promote`.
        retrained: as for :func:`pipelines.stages.promote.promote`.
    """
    snapshot, champion, evaluation = context.snapshot, promotions.champion, candidate.evaluation
    assert evaluation is not None
    work = decision_work(candidate.digest, evaluation.digest, context.recipe.promote)
    root = context.at("decision", name)
    first = snapshot.find_done(Manifest, root, "decision", work)
    if first is not None:
        if _counts(checked_decision(first, root), candidate, promotions):
            return PublishedDecision(first, root, is_new=False)
        root = _root_again(root, champion)
        again = snapshot.find_done(Manifest, root, "decision", work)
        if again is not None:
            if not _counts(checked_decision(again, root), candidate, promotions):
                raise DataError(
                    f"{root} is a decision against another champion than its name says; remove that folder "
                    "and promote again"
                )
            return PublishedDecision(again, root, is_new=False)
    parents = {"model": candidate.digest, "evaluation": evaluation.digest}
    parents |= {"champion": champion.digest} if champion else {}
    metadata = _decision_metadata(context, name, candidate, champion, measure, retrained=retrained)
    manifest = Manifest(kind="decision", fingerprint=work, parents=parents, metadata=metadata)
    published = snapshot.add(root, publish(root, manifest, context.create))
    return PublishedDecision(checked_decision(published, root), root, is_new=True)


def _counts(decision: Manifest, candidate: LedgerModel, promotions: Promotions) -> bool:
    """Whether a decision is the last word: it was applied, or its champion is the champion."""
    champion = promotions.champion
    return (
        promotions.applied(decision.digest) is not None
        or candidate.digest in promotions.rolled_back
        or (champion is not None and champion.digest == candidate.digest)
        or decision.parents.get("champion") == (champion.digest if champion else None)
    )


def _root_again(root: str, champion: LedgerModel | None) -> str:
    """The folder of a decision that is made again."""
    return storage.join(root, f"{_AGAIN}{champion.digest[:16] if champion else 'none'}")


def decisions_at(root: str, snapshot: ManifestSnapshot | None = None) -> list[tuple[str, Manifest]]:
    """All decisions on one model and their folders, the first one first. DataError if one is broken.

    Args:
        root: URL of the folder of the first, ``decision/NAME``.
        snapshot: the manifests that the command has read; new ones are read where it is not given.
    """
    snapshot = snapshot or ManifestSnapshot()
    names = [name for name in storage.list_names(root) if name.startswith(_AGAIN)]
    roots = [root, *(storage.join(root, name) for name in names)]
    found = [(each, snapshot.load(Manifest, each, "decision")) for each in roots]
    return [(each, checked_decision(m, each)) for each, m in found if m is not None]


def _decision_metadata(
    context: Context,
    name: str,
    candidate: LedgerModel,
    champion: LedgerModel | None,
    measure: MeasureChampion | None,
    *,
    retrained: Retrained | None,
) -> dict[str, Any]:
    """Decide; the metadata of the decision's manifest."""
    more: dict[str, Any] = {}
    if champion is not None and champion.digest == candidate.digest:
        decision = Decision(promote=True, reasons=("it is the champion already",))
    else:
        evaluation = candidate.evaluation
        assert evaluation is not None
        manifest = context.snapshot.require(Manifest, evaluation.root, "evaluation", "evaluate")
        metrics = metrics_from(manifest.metadata)
        lacks = lacking_class(context, manifest, champion) if champion else ""
        if champion is None or lacks:
            decision = decide(metrics, None, context.recipe.promote)
            if lacks:
                text = (
                    "every metric is within its limits" if decision.promote else decision.reasons[0]
                )
                reasons = (f"{lacks}, so limits alone decide: {text}", *decision.reasons[1:])
                decision = decision.model_copy(update={"reasons": reasons})
        else:
            measured = (
                measure(champion)
                if measure
                else MeasuredChampion(metrics_of_champion(context, champion))
            )
            count = partial(_count, context, name, candidate, champion, metrics)
            decision, more = _compare(context, name, metrics, measured, count)
            if measured.fresh:
                more["fresh"] = [as_json(ReportedGain.of(each)) for each in measured.fresh]
    return {
        **decision.model_dump(mode="json"),
        **more,
        **({"retrain": as_json(retrained)} if retrained else {}),
        "candidate": candidate.model_dump(mode="json"),
        "champion": champion.model_dump(mode="json") if champion else None,
    }


def _compare(
    context: Context,
    name: str,
    metrics: Sequence[MetricResult],
    measured: MeasuredChampion,
    count: Callable[..., int],
) -> tuple[Decision, dict[str, Any]]:
    """Decide on a candidate with these metrics; in doubt again, with more images if the recipe says so.

    Returns:
        The decision, and ``images`` if more were drawn.
    """
    rules = context.recipe.promote
    decision = decide(metrics, measured.metrics, rules, measured.gains, count())
    images = _more_images(context, metrics) if decision.undecided else None
    if images is None or measured.more is None:
        return decision, {}
    reasons = "; ".join(decision.reasons)
    context.progress.log(f"  {name}: undecided ({reasons}); compares {images:,} images")
    decision = decide(metrics, measured.metrics, rules, measured.more(images), count(images=images))
    return decision, {"images": images}


def _more_images(context: Context, metrics: Sequence[MetricResult]) -> int | None:
    """``promote.max_images``; None if no metric was measured with fewer."""
    most = context.recipe.promote.max_images
    return most if most and any(m.value.protocol.n_fake < most for m in metrics) else None


def _count(
    context: Context,
    name: str,
    candidate: LedgerModel,
    champion: LedgerModel,
    metrics: Sequence[MetricResult],
    *,
    images: int | None = None,
) -> int:
    """Record a decision; the number of decisions with its reference rows, this one included.

    Args:
        context: the command.
        name: of the model in the recipe.
        candidate: the model.
        champion: what it is compared with.
        metrics: of the candidate.
        images: that were drawn because a decision with fewer was undecided.
    """
    references = sorted({metric.value.protocol.reference_digest for metric in metrics})
    rows = f"reference-{fingerprint(references)[:16]}"
    facts = {"candidate": candidate.digest, "champion": champion.digest}
    facts |= {} if images is None else {"images": str(images)}
    work = fingerprint("decision", facts, candidate.evaluation)
    folder = storage.join(context.ledger_url, f"{name}.decisions", rows)
    number = count_decision(folder, work, facts)
    left = max(0, context.recipe.promote.planned_decisions - number)
    RECORDER.set("genmod_looks_left", left, "promote", name)
    return number
