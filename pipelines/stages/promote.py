"""The promote stage: a model becomes the champion if the gate allows it; a decision records why or why not.

A decision is applied once, and only while the champion that it compares with is the champion: if another one
has replaced it meanwhile, the decision is made again. What it changes is an entry of the promotion ledger;
MLflow's aliases follow.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from genmod.config import fingerprint
from genmod.errors import GenmodError
from genmod.manifest import DatasetManifest, Manifest
from genmod.promotion import Evidence, LedgerModel, Promotions
from pipelines.recipe.checks import Data, check_rules
from pipelines.recipe.context import ALREADY_DONE, DONE, Context, Result
from pipelines.recipe.selection import check_selected
from pipelines.stages.champions import Champions
from pipelines.stages.decision_pages import renew_pages, write_decision_page
from pipelines.stages.decision_words import Retrained, occasion
from pipelines.stages.decisions import (
    MeasureChampion,
    PublishedDecision,
    decide_on,
    decided,
    decision_work,
    find_decision,
)
from pipelines.tracking import registry
from pipelines.tracking.run import TrackedRun

_DECISIONS = 5
"""How often a decision is made, because another model became the champion meanwhile."""


@dataclass(frozen=True)
class AppliedDecision:
    """A decision on one model, and whether this command made or applied it."""

    decision: Manifest
    is_new: bool
    page: str
    """URL of its page; empty if the page could not be made."""


def promote(
    context: Context,
    name: str,
    measure: MeasureChampion | None = None,
    retrained: Retrained | None = None,
) -> AppliedDecision:
    """Decide on a model of the recipe, publish the decision, and make the model the champion accordingly.

    Args:
        context: the command; the model, its evaluation and the decision are below its root.
        name: of the model, the candidate.
        measure: returns the champion's metrics; those of the evaluation that it became champion by, if not
            given. Only called if a decision is made.
        retrained: why the candidate was trained, if a retrain made it; stands in the decision.

    Raises:
        ConfigError: there is no evaluation, the champion was not evaluated by the same protocol, or MLflow's
            aliases were moved by hand.
        DataError: the ledger is broken.
        GenmodError: other commands replaced the champion each time.
    """
    champions = Champions(context, name)
    candidate, run = _candidate(champions)
    worked = False
    for _ in range(_DECISIONS):
        promotions = champions.read()
        decision = decide_on(context, name, candidate, promotions, measure, retrained=retrained)
        worked |= decision.is_new
        moved = _apply(champions, promotions, candidate, decision)
        if moved is not None:
            content = decided(decision.manifest)
            page = write_decision_page(champions, decision, renew=moved or decision.is_new)
            if moved:
                renew_pages(champions, [promotions.champion])
            if page:
                run.log_artifact(page)
            run.finish(metadata=content.model_dump(mode="json", include={"promote", "reasons"}))
            return AppliedDecision(decision.manifest, moved or worked, page)
        context.progress.log(
            f"  {name}: the champion changed since this decision was made; it is made again"
        )
    raise GenmodError(
        f"{name}: other commands changed the champion {_DECISIONS} times while this one decided; run it again"
    )


def _candidate(champions: Champions) -> tuple[LedgerModel, TrackedRun]:
    """The model as the ledger will name it, registered if MLflow responds, and the run of the stage."""
    context, name, snapshot = champions.context, champions.name, champions.context.snapshot
    model_root, evaluation_root = context.at("models", name), context.at("evaluation", name)
    model = snapshot.require(Manifest, model_root, "model", f"train --model {name}")
    evaluation = snapshot.require(
        Manifest, evaluation_root, "evaluation", f"evaluate --model {name}"
    )
    inputs = {
        "model": (model_root, model.digest),
        "evaluation": (evaluation_root, evaluation.digest),
    }
    rules = context.recipe.promote
    work = decision_work(model.digest, evaluation.digest, rules)
    run = context.tracker.run("promote", name, work, rules.model_dump(mode="json"), inputs)
    version = champions.register(run, model.digest, model_root)
    if version is not None:
        champions.ask(lambda: registry.tag_evaluation(context.tracker, version, evaluation_root))
    candidate = LedgerModel(
        digest=model.digest,
        root=model_root,
        evaluation=Evidence(root=evaluation_root, digest=evaluation.digest),
        registered=version.name if version else "",
        version=int(version.version) if version else None,
    )
    return candidate, run


def _apply(
    champions: Champions,
    promotions: Promotions,
    candidate: LedgerModel,
    decision: PublishedDecision,
) -> bool | None:
    """Make the candidate the champion if the decision says so; whether it did. None: decide again."""
    log, name, manifest = champions.context.progress.log, champions.name, decision.manifest
    content, champion = decided(manifest), promotions.champion
    current = champion.digest if champion else None
    if not content.promote or current == candidate.digest:
        return False
    if (number := promotions.rolled_back.get(candidate.digest)) is not None:
        log(
            f"  {name}: {candidate.label} was rolled back by entry {number}, so it is not promoted; genmod "
            "promote --pin makes it the champion again"
        )
        return False
    if promotions.applied(manifest.digest) is not None:
        return False
    if current != manifest.parents.get("champion"):
        return None
    if (pin := promotions.pin) is not None:
        log(
            f"  {name}: the champion is pinned by entry {pin.number} ({pin.reason}), so {candidate.label} "
            "does not replace it"
        )
        return False
    reason = "; ".join(content.reasons)[:4000] or "the gate allows it"
    evidence = Evidence(root=decision.root, digest=manifest.digest)
    if champions.write(promotions, "promote", candidate, reason, evidence) is None:
        return None
    champions.follow()
    return True


def is_pending(context: Context, name: str) -> bool:
    """Whether a published decision promotes a model that never was the champion."""
    decision = find_decision(context, name)
    if decision is None or not decided(decision).promote:
        return False
    promotions = Champions(context, name).read()
    return not promotions.of_model(decision.parents.get("model", ""))


def stage(context: Context) -> Result:
    """Run the command: decide on each of the selected models."""
    start_s = time.monotonic()
    check_selected(context)
    data = context.snapshot.load(DatasetManifest, context.at("data"), "dataset")
    if data is not None:
        check_rules(context, Data.of(data))
    applied = {name: promote(context, name) for name in context.models}
    return promote_result(context, "promote", applied, context.at("decision"), start_s)


def promote_result(
    context: Context,
    stage: str,
    applied: Mapping[str, AppliedDecision],
    output: str,
    start_s: float,
) -> Result:
    """Log the decisions by model, and return the result of the stage that made them."""
    for name, each in applied.items():
        log_decision(context, name, each)
    worked = any(each.is_new for each in applied.values())
    status = DONE if worked else ALREADY_DONE
    took = f" in {time.monotonic() - start_s:.0f} s" if worked else ""
    context.progress.log(f"{stage}: {status}{took}: {output}")
    return {
        "stage": stage,
        "status": status,
        "output": output,
        "fingerprint": fingerprint(
            {name: each.decision.fingerprint for name, each in applied.items()}
        ),
        "decisions": {
            name: {**decided(each.decision).model_dump(mode="json"), "page": each.page}
            for name, each in applied.items()
        },
    }


def log_decision(context: Context, title: str, applied: AppliedDecision) -> None:
    """Log whether a model becomes the champion, why, what newer rows say, and where the page is."""
    found = decided(applied.decision)
    outcome = "champion" if found.promote else "not promoted"
    context.progress.log(f"  {title}: {outcome}: {'; '.join(found.reasons)}")
    for line in occasion(applied.decision).lines():
        context.progress.log(f"  {title}: {line}")
    if applied.page:
        context.progress.log(f"  {title}: see {applied.page}")
