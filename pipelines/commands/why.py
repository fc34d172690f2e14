"""``genmod why VERSION``: what became of a model, against whom, by which rules, and what it was made from."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from genmod.documents import validate
from genmod.errors import ConfigError
from genmod.manifest import Manifest
from genmod.promotion import LedgerEntry, LedgerModel, Promotions
from pipelines.commands.models import alias_text, state_of, when
from pipelines.recipe.context import Context
from pipelines.stages.champions import Champions
from pipelines.stages.decision_words import occasion
from pipelines.stages.decisions import decided, decisions_at
from pipelines.stages.known_models import find_model, sibling
from pipelines.stages.replaced import replaced_digests

_Text = Annotated[str, Field(max_length=10_000)]


class _Check(BaseModel):
    """The outcome of one rule."""

    metric: _Text = ""
    outcome: _Text = ""
    reason: _Text = ""


class _Checks(BaseModel):
    checks: tuple[_Check, ...] = Field(default=(), max_length=1_000)


def explain_version(context: Context, version: str) -> tuple[dict[str, Any], list[str]]:
    """What the ledger, the decisions and the manifests say about a version: as JSON values, and as lines.

    Args:
        context: the command, with one selected model.
        version: number of a registered version, or the start of a model's digest.

    Raises:
        ConfigError: there is no such version, or several models are selected.
        DataError: a decision or the ledger is broken.
    """
    if len(context.models) != 1:
        raise ConfigError(
            f"why: a version is one of one model; name it with --model: {', '.join(context.models)}"
        )
    champions = Champions(context, context.models[0])
    promotions = champions.ledger.read()
    model = find_model(champions, promotions, version)
    entries = promotions.of_model(model.digest)
    decisions = _decisions(champions, model)
    lineage = _lineage(champions, model)
    state = state_of(promotions, model.digest)
    lines = [f"{champions.name} {model.label}: {state}"]
    lines += [f"  trained model at {model.root}"]
    replaced = _replaced(champions, model)
    lines += [f"marked: {line}" for line in replaced]
    for root, decision in decisions:
        lines += _decision_lines(promotions, root, decision)
    if not decisions:
        lines.append(f"no decision: genmod promote --model {champions.name} makes one")
    lines += [_entry_line(entry) for entry in entries]
    if not entries:
        lines.append("no entry of the promotion ledger concerns it")
    lines += [f"made from: {line}" for line in lineage]
    if text := alias_text(champions, promotions):
        lines.append(f"MLflow: {text}")
    values = {
        "model": model.model_dump(mode="json"),
        "state": state,
        "decisions": [
            {"root": root, "digest": each.digest, **decided(each).model_dump(mode="json")}
            | {"checks": [check.model_dump() for check in _checks(each, root)]}
            | occasion(each).model_dump(mode="json", include={"retrain", "fresh"})
            for root, each in decisions
        ],
        "ledger": [entry.model_dump(mode="json") for entry in entries],
        "lineage": lineage,
        "marked": replaced,
    }
    return values, lines


def _replaced(champions: Champions, model: LedgerModel) -> list[str]:
    """What the version without some rows says about a model and synthetic datasets made with them."""
    lists = replaced_digests(champions.context.command_root)
    found = lists.get(model.digest)
    if found is None:
        return []
    (own,) = (item for item in found.items if item.digest == model.digest)
    datasets = [
        f"synthetic dataset {item.path}: {found.mark}"
        for item in found.items
        if item.kind == "synthetic dataset" and item.model == model.digest
    ]
    return [f"{own.kind} {own.path}: {found.mark}", *datasets]


def _decisions(champions: Champions, model: LedgerModel) -> list[tuple[str, Manifest]]:
    """The decisions on a model, with their folders."""
    root = sibling(model.root, "decision")
    found = decisions_at(root) if root else []
    return [(at, each) for at, each in found if each.parents.get("model") == model.digest]


def _decision_lines(promotions: Promotions, root: str, decision: Manifest) -> list[str]:
    content = decided(decision)
    champion = decision.parents.get("champion")
    against = "without a champion"
    if champion is not None:
        models = {entry.model.digest: entry.model for entry in promotions.entries}
        label = models[champion].label if champion in models else f"model {champion[:12]}"
        against = f"against {label}"
    entry = promotions.applied(decision.digest)
    outcome = "promote" if content.promote else "do not promote"
    applied = f", applied by entry {entry.number}" if entry else ""
    if content.promote and entry is None:
        applied = ", not applied"
    lines = [f"decision {against}: {outcome}{applied} (at {root})"]
    checks = _checks(decision, root)
    lines += [f"  {check.outcome or 'rule'}: {check.reason or check.metric}" for check in checks]
    known = {check.reason for check in checks}
    lines += [f"  {reason}" for reason in content.reasons if reason not in known]
    return lines + [f"  {line}" for line in occasion(decision).lines()]


def _checks(decision: Manifest, root: str) -> tuple[_Check, ...]:
    remedy = "remove that folder and promote again"
    return validate(_Checks, decision.metadata, "a decision on a model", root, remedy).checks


def _entry_line(entry: LedgerEntry) -> str:
    replaced = f", replaces {entry.replaces[:12]}" if entry.replaces else ""
    champion = f"champion {entry.model.digest[:12]}"
    return (
        f"entry {entry.number}, {when(entry)} UTC, by {entry.author}: {entry.action}, {champion}{replaced}: "
        f"{entry.reason}"
    )


def _lineage(champions: Champions, model: LedgerModel) -> list[str]:
    """The inputs of the model and of its evaluation, by digest."""
    snapshot = champions.context.snapshot
    found = {"model": (model.root, snapshot.load(Manifest, model.root, "model"))}
    if model.evaluation is not None:
        root = champions.allowed(model.evaluation.root, f"the evaluation of {model.label}")
        found["evaluation"] = root, snapshot.load(Manifest, root, "evaluation")
    lines: list[str] = []
    for kind, (root, manifest) in found.items():
        if manifest is None:
            lines.append(f"{kind} at {root}: missing")
            continue
        inputs = ", ".join(f"{name} {digest[:12]}" for name, digest in manifest.parents.items())
        lines.append(f"{kind} {manifest.digest[:12]} at {root}: {inputs or 'no inputs'}")
    return lines
