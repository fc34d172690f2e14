"""The promote stage: a model becomes the champion if the gate says so, and the decision says why or why not.

A decision is made once for a candidate and kept. The alias moves from the champion that the decision was made
against to the candidate, and from nobody else: an old decision never undoes a newer one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genmod.config import fingerprint
from genmod.errors import ConfigError
from genmod.evaluation.gate import Decision, PromoteConfig, decide
from genmod.evaluation.measure import metrics_from
from genmod.manifest import Manifest, find_done, load_manifest, publish, require
from genmod.metrics.protocol import MetricResult, protocol_differences
from pipelines.recipe.context import ALREADY, DONE, Context, Result
from pipelines.recipe.selection import need_models
from pipelines.tracking import registry
from pipelines.tracking.registry import ModelEntry, ModelVersion
from pipelines.tracking.run import TrackedRun


@dataclass(frozen=True)
class Contender:
    """A trained and evaluated model that may become the champion."""

    name: str
    """In the recipe."""
    model_root: str
    evaluation_root: str
    decision_root: str


def contender(context: Context, name: str) -> Contender:
    """A model of the recipe, where the stages of the context leave it."""
    return Contender(
        name,
        context.at("models", name),
        context.at("evaluation", name),
        context.at("decision", name),
    )


def promote(
    context: Context, candidate: Contender, standing: Sequence[MetricResult] | None = None
) -> tuple[Manifest, bool]:
    """Judge a candidate, publish the decision, move the alias accordingly.

    Args:
        context: the command.
        candidate: who wants to be champion.
        standing: the champion's values, if not those of the evaluation it became champion by.

    Returns:
        The decision's manifest, and whether anything was done now.

    Raises:
        ConfigError: there is no evaluation, or the champion was not evaluated by the same protocol.
        TrackingError: the registry does not answer.
    """
    model = require(Manifest, candidate.model_root, "model", f"train --model {candidate.name}")
    made_by = f"evaluate --model {candidate.name}"
    evaluation = require(Manifest, candidate.evaluation_root, "evaluation", made_by)
    rules = context.recipe.promote
    wanted = fingerprint("decision", model.digest, evaluation.digest, rules)
    done = find_done(Manifest, candidate.decision_root, "decision", wanted)
    inputs = {
        "model": (candidate.model_root, model.digest),
        "evaluation": (candidate.evaluation_root, evaluation.digest),
    }
    params = rules.model_dump(mode="json")
    run = context.tracker.run("promote", candidate.name, wanted, params, inputs)
    version = _version(context, run, candidate, model.digest)
    champion = registry.champion(context.tracker, candidate.name)
    decision = done
    if decision is None:
        parents = {"model": model.digest, "evaluation": evaluation.digest}
        parents |= {"champion": champion.digest} if champion else {}
        theirs = standing if standing or champion is None else champion_readings(champion)
        metadata = _judged(rules, metrics_from(evaluation.metadata), theirs, version, champion)
        manifest = Manifest(kind="decision", fingerprint=wanted, parents=parents, metadata=metadata)
        decision = publish(candidate.decision_root, manifest)
    moved = _move(context, decision, version, champion)
    run.finish(
        metadata={"promote": decision.metadata["promote"], "reasons": decision.metadata["reasons"]}
    )
    return decision, moved or done is None


def settle(context: Context, candidate: Contender) -> bool:
    """Move the alias by a decision that is there already, if that is still to do; whether it moved.

    Raises:
        TrackingError: the registry does not answer.
    """
    decision = load_manifest(Manifest, candidate.decision_root, "decision")
    if decision is None or not decision.metadata["promote"]:
        return False
    digest = decision.parents["model"]
    version = registry.version_of(context.tracker, candidate.name, digest)
    if version is None:
        return False
    return _move(context, decision, version, registry.champion(context.tracker, candidate.name))


def champion_readings(champion: ModelVersion) -> tuple[MetricResult, ...]:
    """The values by which a version became the champion.

    Raises:
        ConfigError: it has none.
    """
    who = f"the champion, {champion.name} version {champion.version},"
    if not champion.digest or not champion.evaluation:
        raise ConfigError(
            f"{who} was not evaluated by genmod; take the alias {registry.CHAMPION_ALIAS!r} off it, "
            "then promote again"
        )
    return metrics_from(require(Manifest, champion.evaluation, "evaluation", "evaluate").metadata)


def is_comparable(mine: Sequence[MetricResult], theirs: Sequence[MetricResult]) -> bool:
    """Whether every value that both have was measured by one protocol."""
    others = {reading.value.protocol.metric: reading.value.protocol for reading in theirs}
    pairs = [(r.value.protocol, others.get(r.value.protocol.metric)) for r in mine]
    return all(other is None or not protocol_differences(own, other) for own, other in pairs)


def stage(context: Context) -> Result:
    """The command: judge each of the recipe's models."""
    start_s = time.monotonic()
    need_models(context)
    judged = {name: promote(context, contender(context, name)) for name in context.models}
    return result(context, "promote", judged, context.at("decision"), start_s)


def result(
    context: Context,
    stage: str,
    judged: dict[str, tuple[Manifest, bool]],
    output: str,
    start_s: float,
) -> Result:
    """Say the decisions, and make the stage's answer of them."""
    for name, (decision, _) in judged.items():
        word = "champion" if decision.metadata["promote"] else "not promoted"
        context.progress.log(f"  {name}: {word}: {'; '.join(decision.metadata['reasons'])}")
    made = any(fresh for _, fresh in judged.values())
    digests = {name: decision.fingerprint for name, (decision, _) in judged.items()}
    took = f" in {time.monotonic() - start_s:.0f} s" if made else ""
    context.progress.log(f"{stage}: {DONE if made else ALREADY}{took}: {output}")
    return {
        "stage": stage,
        "status": DONE if made else ALREADY,
        "output": output,
        "fingerprint": fingerprint(digests),
        "decisions": {name: _told(decision) for name, (decision, _) in judged.items()},
    }


def _told(decision: Manifest) -> dict[str, Any]:
    return {key: decision.metadata[key] for key in ("promote", "reasons", "candidate", "champion")}


def _version(context: Context, run: TrackedRun, candidate: Contender, digest: str) -> ModelVersion:
    """The candidate's version in the registry; it is made if training could not make it."""
    recipe_yaml = context.recipe.to_yaml()
    entry = ModelEntry(candidate.name, digest, candidate.model_root, recipe_yaml)
    version = registry.register(context.tracker, run, entry)
    return registry.tag_evaluation(context.tracker, version, candidate.evaluation_root)


def _judged(
    rules: PromoteConfig,
    mine: Sequence[MetricResult],
    theirs: Sequence[MetricResult] | None,
    version: ModelVersion,
    champion: ModelVersion | None,
) -> dict[str, Any]:
    """What a decision's manifest says."""
    if champion is not None and champion.digest == version.digest:
        decision = Decision(promote=True, reasons=("it is the champion already",))
    else:
        decision = decide(mine, theirs if champion else None, rules)
    return {
        **decision.model_dump(mode="json"),
        "candidate": version.model_dump(mode="json"),
        "champion": champion.model_dump(mode="json") if champion else None,
    }


def _move(
    context: Context, decision: Manifest, version: ModelVersion, champion: ModelVersion | None
) -> bool:
    """Move the alias as the decision says; whether it moved."""
    now = champion.digest if champion else None
    if not decision.metadata["promote"] or now == version.digest:
        return False
    if now != decision.parents.get("champion"):
        context.progress.log(
            f"  {version.name}: the champion changed since this decision was made, "
            f"so version {version.version} does not take its place"
        )
        return False
    registry.set_champion(context.tracker, version)
    return True
