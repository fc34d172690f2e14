"""The promote stage: a model becomes the champion if the gate allows it; a decision records why or why not.

A decision is made once for a candidate and kept. The alias moves only from the champion that the decision
compared with to the candidate, so an old decision never undoes a newer one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genmod.config import fingerprint
from genmod.errors import ConfigError
from genmod.evaluation.gate import Decision, PromoteConfig, decide
from genmod.evaluation.measure import metrics_from
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import Manifest, publish
from genmod.metrics.protocol import MetricResult, protocol_differences
from pipelines.recipe.context import ALREADY_DONE, DONE, Context, Result
from pipelines.recipe.selection import check_selected
from pipelines.tracking import registry
from pipelines.tracking.registry import ModelEntry, ModelVersion
from pipelines.tracking.run import TrackedRun


@dataclass(frozen=True)
class AppliedDecision:
    """A decision on one model, and whether this command made or applied it."""

    decision: Manifest
    is_new: bool


def promote(
    context: Context, name: str, champion_metrics: Sequence[MetricResult] | None = None
) -> AppliedDecision:
    """Decide on a model of the recipe, publish the decision, and move the champion alias accordingly.

    Args:
        context: the command; the model, its evaluation and the decision are below its root.
        name: of the model, the candidate.
        champion_metrics: the champion's; those of the evaluation that it became champion by, if not given.

    Raises:
        ConfigError: there is no evaluation, or the champion was not evaluated by the same protocol.
        TrackingError: the registry does not answer.
    """
    snapshot = context.snapshot
    model_root, evaluation_root = context.at("models", name), context.at("evaluation", name)
    model = snapshot.require(Manifest, model_root, "model", f"train --model {name}")
    evaluation = snapshot.require(
        Manifest, evaluation_root, "evaluation", f"evaluate --model {name}"
    )
    rules = context.recipe.promote
    work = fingerprint("decision", model.digest, evaluation.digest, rules)
    decision_root = context.at("decision", name)
    done = snapshot.find_done(Manifest, decision_root, "decision", work)
    inputs = {
        "model": (model_root, model.digest),
        "evaluation": (evaluation_root, evaluation.digest),
    }
    run = context.tracker.run("promote", name, work, rules.model_dump(mode="json"), inputs)
    version = _version(context, run, name, model.digest)
    champion = registry.champion(context.tracker, name)
    decision = done
    if decision is None:
        parents = {"model": model.digest, "evaluation": evaluation.digest}
        parents |= {"champion": champion.digest} if champion else {}
        if champion is not None and not champion_metrics:
            champion_metrics = metrics_of_champion(snapshot, champion)
        candidate_metrics = metrics_from(evaluation.metadata)
        metadata = _decision_metadata(rules, candidate_metrics, champion_metrics, version, champion)
        manifest = Manifest(kind="decision", fingerprint=work, parents=parents, metadata=metadata)
        decision = snapshot.add(decision_root, publish(decision_root, manifest))
    moved = _move_alias(context, decision, version, champion)
    run.finish(
        metadata={"promote": decision.metadata["promote"], "reasons": decision.metadata["reasons"]}
    )
    return AppliedDecision(decision, moved or done is None)


def find_decision(context: Context, name: str) -> Manifest | None:
    """The published decision on a model of the recipe, None if there is none."""
    return context.snapshot.load(Manifest, context.at("decision", name), "decision")


def apply(context: Context, name: str) -> bool:
    """Move the champion alias by a decision that was published before; whether it moved.

    Raises:
        TrackingError: the registry does not answer.
    """
    decision = find_decision(context, name)
    if decision is None or not decision.metadata["promote"]:
        return False
    version = registry.version_of(context.tracker, name, decision.parents["model"])
    if version is None:
        return False
    return _move_alias(context, decision, version, registry.champion(context.tracker, name))


def metrics_of_champion(
    snapshot: ManifestSnapshot, champion: ModelVersion
) -> tuple[MetricResult, ...]:
    """The metrics by which a version became the champion. ConfigError if it has none."""
    if not champion.digest or not champion.evaluation:
        raise ConfigError(
            f"the champion, {champion.name} version {champion.version}, was not evaluated by genmod; "
            f"remove its alias {registry.CHAMPION_ALIAS!r}, then promote again"
        )
    manifest = snapshot.require(Manifest, champion.evaluation, "evaluation", "evaluate")
    return metrics_from(manifest.metadata)


def is_comparable(candidate: Sequence[MetricResult], champion: Sequence[MetricResult]) -> bool:
    """Whether every metric that two models share was measured by the same protocol."""
    protocols = {result.value.protocol.metric: result.value.protocol for result in champion}
    pairs = [(r.value.protocol, protocols.get(r.value.protocol.metric)) for r in candidate]
    return all(other is None or not protocol_differences(own, other) for own, other in pairs)


def stage(context: Context) -> Result:
    """Run the command: decide on each of the selected models."""
    start_s = time.monotonic()
    check_selected(context)
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
        log_decision(context, name, each.decision)
    worked = any(each.is_new for each in applied.values())
    status = DONE if worked else ALREADY_DONE
    took = f" in {time.monotonic() - start_s:.0f} s" if worked else ""
    context.progress.log(f"{stage}: {status}{took}: {output}")
    keys = "promote", "reasons", "candidate", "champion"
    return {
        "stage": stage,
        "status": status,
        "output": output,
        "fingerprint": fingerprint(
            {name: each.decision.fingerprint for name, each in applied.items()}
        ),
        "decisions": {
            name: {key: each.decision.metadata[key] for key in keys}
            for name, each in applied.items()
        },
    }


def log_decision(context: Context, title: str, decision: Manifest) -> None:
    """Log whether a model becomes the champion, and why."""
    outcome = "champion" if decision.metadata["promote"] else "not promoted"
    context.progress.log(f"  {title}: {outcome}: {'; '.join(decision.metadata['reasons'])}")


def _version(context: Context, run: TrackedRun, name: str, digest: str) -> ModelVersion:
    """The candidate's version in the registry; registers it if the train stage could not."""
    entry = ModelEntry(name, digest, context.at("models", name), context.recipe.to_yaml())
    version = registry.register(context.tracker, run, entry)
    return registry.tag_evaluation(context.tracker, version, context.at("evaluation", name))


def _decision_metadata(
    rules: PromoteConfig,
    candidate_metrics: Sequence[MetricResult],
    champion_metrics: Sequence[MetricResult] | None,
    version: ModelVersion,
    champion: ModelVersion | None,
) -> dict[str, Any]:
    """Decide; the metadata of the decision's manifest."""
    if champion is not None and champion.digest == version.digest:
        decision = Decision(promote=True, reasons=("it is the champion already",))
    else:
        decision = decide(candidate_metrics, champion_metrics if champion else None, rules)
    return {
        **decision.model_dump(mode="json"),
        "candidate": version.model_dump(mode="json"),
        "champion": champion.model_dump(mode="json") if champion else None,
    }


def _move_alias(
    context: Context, decision: Manifest, version: ModelVersion, champion: ModelVersion | None
) -> bool:
    """Move the champion alias as the decision says; whether it moved."""
    current = champion.digest if champion else None
    if not decision.metadata["promote"] or current == version.digest:
        return False
    if current != decision.parents.get("champion"):
        context.progress.log(
            f"  {version.name}: the champion changed since this decision was made, "
            f"so version {version.version} does not replace it"
        )
        return False
    registry.set_champion(context.tracker, version)
    return True
