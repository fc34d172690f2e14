"""The promote stage: a model becomes the champion if the gate says so, and the verdict says why or why not.

A verdict is made once for a candidate and kept. The alias moves from the champion that the verdict was made
against to the candidate, and from nobody else: an old verdict never undoes a newer one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genmod.config import fingerprint
from genmod.errors import ConfigError
from genmod.evaluation.gate import PromoteConfig, Verdict, judge
from genmod.evaluation.measure import readings_from
from genmod.manifest import Manifest, find_done, load, publish, require
from genmod.metrics.protocol import Reading, unlike
from pipelines.recipe.context import ALREADY, DONE, Context, Result
from pipelines.recipe.selection import need_models
from pipelines.tracking import registry
from pipelines.tracking.registry import Candidate, ModelVersion
from pipelines.tracking.run import TrackedRun


@dataclass(frozen=True)
class Contender:
    """A trained and evaluated model that may become the champion."""

    name: str
    """In the recipe."""
    model_root: str
    evaluation_root: str
    verdict_root: str


def contender(context: Context, name: str) -> Contender:
    """A model of the recipe, where the stages of the context leave it."""
    return Contender(
        name,
        context.at("models", name),
        context.at("evaluation", name),
        context.at("verdict", name),
    )


def promote(
    context: Context, candidate: Contender, standing: Sequence[Reading] | None = None
) -> tuple[Manifest, bool]:
    """Judge a candidate, publish the verdict, move the alias accordingly.

    Args:
        context: the command.
        candidate: who wants to be champion.
        standing: the champion's values, if not those of the evaluation it became champion by.

    Returns:
        The verdict's manifest, and whether anything was done now.

    Raises:
        ConfigError: there is no evaluation, or the champion was not evaluated by the same protocol.
        TrackingError: the registry does not answer.
    """
    model = require(Manifest, candidate.model_root, "model", f"train --model {candidate.name}")
    made_by = f"evaluate --model {candidate.name}"
    evaluation = require(Manifest, candidate.evaluation_root, "evaluation", made_by)
    rules = context.recipe.promote
    wanted = fingerprint("verdict", model.digest, evaluation.digest, rules)
    done = find_done(Manifest, candidate.verdict_root, "verdict", wanted)
    inputs = {
        "model": (candidate.model_root, model.digest),
        "evaluation": (candidate.evaluation_root, evaluation.digest),
    }
    params = rules.model_dump(mode="json")
    run = context.tracker.run("promote", candidate.name, wanted, params, inputs)
    version = _version(context, run, candidate, model.digest)
    champion = registry.champion(context.tracker, candidate.name)
    verdict = done
    if verdict is None:
        parents = {"model": model.digest, "evaluation": evaluation.digest}
        parents |= {"champion": champion.digest} if champion else {}
        theirs = standing if standing or champion is None else champion_readings(champion)
        facts = _judged(rules, readings_from(evaluation.facts), theirs, version, champion)
        manifest = Manifest(kind="verdict", fingerprint=wanted, parents=parents, facts=facts)
        verdict = publish(candidate.verdict_root, manifest)
    moved = _move(context, verdict, version, champion)
    run.finish(facts={"promote": verdict.facts["promote"], "reasons": verdict.facts["reasons"]})
    return verdict, moved or done is None


def settle(context: Context, candidate: Contender) -> bool:
    """Move the alias by a verdict that is there already, if that is still to do; whether it moved.

    Raises:
        TrackingError: the registry does not answer.
    """
    verdict = load(Manifest, candidate.verdict_root, "verdict")
    if verdict is None or not verdict.facts["promote"]:
        return False
    digest = verdict.parents["model"]
    version = registry.version_of(context.tracker, candidate.name, digest)
    if version is None:
        return False
    return _move(context, verdict, version, registry.champion(context.tracker, candidate.name))


def champion_readings(champion: ModelVersion) -> tuple[Reading, ...]:
    """The values by which a version became the champion.

    Raises:
        ConfigError: it has none.
    """
    who = f"the champion, {champion.name} version {champion.version},"
    if not champion.digest or not champion.evaluation:
        raise ConfigError(
            f"{who} was not evaluated by genmod; take the alias {registry.ALIAS!r} off it, "
            "then promote again"
        )
    return readings_from(require(Manifest, champion.evaluation, "evaluation", "evaluate").facts)


def is_comparable(mine: Sequence[Reading], theirs: Sequence[Reading]) -> bool:
    """Whether every value that both have was measured by one protocol."""
    others = {reading.value.protocol.metric: reading.value.protocol for reading in theirs}
    pairs = [(r.value.protocol, others.get(r.value.protocol.metric)) for r in mine]
    return all(other is None or not unlike(own, other) for own, other in pairs)


def stage(context: Context) -> Result:
    """The command: judge each of the recipe's models."""
    begun_s = time.monotonic()
    need_models(context)
    judged = {name: promote(context, contender(context, name)) for name in context.models}
    return result(context, "promote", judged, context.at("verdict"), begun_s)


def result(
    context: Context,
    stage: str,
    judged: dict[str, tuple[Manifest, bool]],
    output: str,
    begun_s: float,
) -> Result:
    """Say the verdicts, and make the stage's answer of them."""
    for name, (verdict, _) in judged.items():
        word = "champion" if verdict.facts["promote"] else "not promoted"
        context.progress.say(f"  {name}: {word}: {'; '.join(verdict.facts['reasons'])}")
    made = any(fresh for _, fresh in judged.values())
    digests = {name: verdict.fingerprint for name, (verdict, _) in judged.items()}
    took = f" in {time.monotonic() - begun_s:.0f} s" if made else ""
    context.progress.say(f"{stage}: {DONE if made else ALREADY}{took}: {output}")
    return {
        "stage": stage,
        "status": DONE if made else ALREADY,
        "output": output,
        "fingerprint": fingerprint(digests),
        "verdicts": {name: _told(verdict) for name, (verdict, _) in judged.items()},
    }


def _told(verdict: Manifest) -> dict[str, Any]:
    return {key: verdict.facts[key] for key in ("promote", "reasons", "candidate", "champion")}


def _version(context: Context, run: TrackedRun, candidate: Contender, digest: str) -> ModelVersion:
    """The candidate's version in the registry; it is made if training could not make it."""
    recipe_yaml = context.recipe.to_yaml()
    entry = Candidate(candidate.name, digest, candidate.model_root, recipe_yaml)
    version = registry.register(context.tracker, run, entry)
    return registry.note_evaluation(context.tracker, version, candidate.evaluation_root)


def _judged(
    rules: PromoteConfig,
    mine: Sequence[Reading],
    theirs: Sequence[Reading] | None,
    version: ModelVersion,
    champion: ModelVersion | None,
) -> dict[str, Any]:
    """What a verdict's manifest says."""
    if champion is not None and champion.digest == version.digest:
        verdict = Verdict(promote=True, reasons=("it is the champion already",))
    else:
        verdict = judge(mine, theirs if champion else None, rules)
    return {
        **verdict.model_dump(mode="json"),
        "candidate": version.model_dump(mode="json"),
        "champion": champion.model_dump(mode="json") if champion else None,
    }


def _move(
    context: Context, verdict: Manifest, version: ModelVersion, champion: ModelVersion | None
) -> bool:
    """Move the alias as the verdict says; whether it moved."""
    now = champion.digest if champion else None
    if not verdict.facts["promote"] or now == version.digest:
        return False
    if now != verdict.parents.get("champion"):
        context.progress.say(
            f"  {version.name}: the champion changed since this verdict was made, "
            f"so version {version.version} does not take its place"
        )
        return False
    registry.set_champion(context.tracker, version)
    return True
