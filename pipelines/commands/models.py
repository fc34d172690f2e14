"""``genmod models``: every model of a recipe with its champion, its versions, when and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genmod.promotion import LedgerEntry, LedgerModel, Promotions, compare_aliases
from pipelines.commands.champion_actions import champion_state
from pipelines.commands.text_table import text_table
from pipelines.recipe.context import Context
from pipelines.stages.champions import DRIFT_REMEDY, Champions, alias_digests, is_first
from pipelines.stages.known_models import known_models
from pipelines.stages.replaced import ReplacedList, replaced_digests

Marks = Mapping[str, ReplacedList]
"""Digest of a model whose rows were removed or changed -> the list of the version without them."""

_HEADER = ("version", "model", "state", "since", "why")

_REASON_CHARS = 80
"""Characters of a reason in the table."""


def list_models(context: Context) -> tuple[dict[str, Any], list[str]]:
    """The command's models, as JSON values by name, and as lines for people. Writes nothing.

    Raises:
        DataError: a ledger is broken.
    """
    result: dict[str, Any] = {}
    lines: list[str] = []
    marks = replaced_digests(context.command_root)
    for name in context.models:
        champions = Champions(context, name)
        promotions = champions.ledger.read()
        known = known_models(champions, promotions)
        aliases = alias_text(champions, promotions)
        result[name] = {
            **champion_state(promotions),
            "mlflow": aliases,
            "versions": [_version(promotions, model, marks) for model in known],
        }
        rows = [_row(promotions, model, marks) for model in known]
        lines += [*([""] if lines else []), *_summary(promotions, aliases, marks)]
        lines += [f"  {line}" for line in text_table(_HEADER, rows)] if rows else ["  no version"]
    return result, lines


def alias_text(champions: Champions, promotions: Promotions) -> str:
    """What MLflow's aliases say, compared with the ledger; empty if MLflow is off or has no database."""
    if not champions.context.tracker.place.exists:
        return ""
    aliases = champions.aliases()
    if aliases is None:
        return "MLflow does not respond"
    if is_first(promotions, aliases):
        return (
            "the champion in MLflow is not in the ledger yet; the next promote or retrain adopts it"
        )
    state = compare_aliases(promotions, alias_digests(aliases))
    if state.kind == "equal":
        return "the aliases are as the ledger says"
    if state.kind == "behind":
        return f"{state.text}; the next promote or retrain sets them"
    return f"{state.text}; {DRIFT_REMEDY}"


def state_of(promotions: Promotions, digest: str) -> str:
    """What a model is now, in words."""
    champion, previous = promotions.champion, promotions.previous
    if champion is not None and champion.digest == digest:
        return "champion, pinned" if promotions.pin else "champion"
    if (number := promotions.rolled_back.get(digest)) is not None:
        return f"rolled back by entry {number}"
    if previous is not None and previous.digest == digest:
        return "previous"
    return "former champion" if promotions.of_model(digest) else "never champion"


def when(entry: LedgerEntry) -> str:
    """Time of an entry, to the minute."""
    return entry.time[:16].replace("T", " ")


def _summary(promotions: Promotions, aliases: str, marks: Marks) -> list[str]:
    champion, previous, pin = promotions.champion, promotions.previous, promotions.pin
    lines = [f"{promotions.name}: no champion yet"]
    since = promotions.since
    if champion is not None and since is not None:
        lines = [f"{promotions.name}: the champion is {champion.label}, since {when(since)} UTC"]
        if champion.digest in marks:
            lines.append(f"  it was {marks[champion.digest].mark}, until another one is promoted")
    if previous is not None:
        lines.append(f"  genmod promote --rollback returns to {previous.label}")
    if pin is not None:
        lines.append(f"  pinned by {pin.author} on {when(pin)} UTC: {pin.reason}")
    return [*lines, *([f"  MLflow: {aliases}"] if aliases else [])]


def _row(promotions: Promotions, model: LedgerModel, marks: Marks) -> tuple[str, ...]:
    entry = _newest(promotions, model)
    version = str(model.version) if model.version else ""
    state = state_of(promotions, model.digest)
    if model.digest in marks:
        state += f", of rows that version {marks[model.digest].version} does not have"
    cells = (version, model.digest[:12], state)
    if entry is None:
        return (*cells, "", "")
    why = _why(entry, model)
    short = why if len(why) <= _REASON_CHARS else f"{why[: _REASON_CHARS - 3]}..."
    return (*cells, when(entry), short)


def _newest(promotions: Promotions, model: LedgerModel) -> LedgerEntry | None:
    """The newest entry that made a model the champion, or replaced it."""
    entries = [e for e in promotions.of_model(model.digest) if e.replaces != e.model.digest]
    return entries[-1] if entries else None


def _why(entry: LedgerEntry, model: LedgerModel) -> str:
    if entry.model.digest == model.digest:
        return f"{entry.action}: {entry.reason}"
    return f"{entry.action} of {entry.model.label}: {entry.reason}"


def _version(promotions: Promotions, model: LedgerModel, marks: Marks) -> dict[str, Any]:
    entry, mark = _newest(promotions, model), marks.get(model.digest)
    return {
        **model.model_dump(mode="json"),
        "state": state_of(promotions, model.digest),
        "entries": [each.number for each in promotions.of_model(model.digest)],
        "since": entry.time if entry else None,
        "why": _why(entry, model) if entry else None,
        "replaced": {"version": mark.version, "reason": mark.reason} if mark else None,
    }
