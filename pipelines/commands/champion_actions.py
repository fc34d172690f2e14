"""What a person does with a champion: ``genmod promote --rollback``, ``--pin`` and others.

Each is one entry of the promotion ledger; MLflow's aliases follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from genmod.errors import ConfigError, GenmodError
from genmod.promotion import Action, LedgerModel, Promotions, compare_aliases
from pipelines.recipe.context import ALREADY_DONE, DONE, Context, Result
from pipelines.stages.champions import Champions, alias_digests
from pipelines.stages.decision_pages import renew_pages
from pipelines.stages.known_models import check_whole, find_model
from pipelines.tracking import registry

ActionKind = Literal["rollback", "pin", "unpin", "repair", "adopt"]

CHAMPION_ACTIONS: tuple[ActionKind, ...] = ("rollback", "pin", "unpin", "repair", "adopt")
"""All actions; the option of each has its name."""

MAX_REASON = 2000
"""Characters of a reason."""


@dataclass(frozen=True)
class ChampionAction:
    """One of the actions, with its arguments."""

    kind: ActionKind
    version: str = ""
    """Of a pin: number of a version, or start of a model's digest."""
    reason: str = ""


@dataclass(frozen=True)
class _Step:
    """What an action will do to one model."""

    text: str
    action: Action | None = None
    """The entry that is written; None if only the aliases are set, or nothing is done."""
    model: LedgerModel | None = None
    reason: str = ""
    sets_aliases: bool = True


def check_action(action: ChampionAction, models: tuple[str, ...], selected: bool) -> None:
    """Check an action before anything is read.

    Args:
        action: the action.
        models: names of the recipe's models that it is for.
        selected: whether the user named them.

    Raises:
        ConfigError: a reason is missing, empty or too long, or no model was named and there are several.
    """
    needs_reason = action.kind in ("pin", "adopt")
    if needs_reason and not action.reason.strip():
        raise ConfigError(
            f"promote --{action.kind}: --reason is missing or empty; say why, the ledger keeps it: "
            "--reason TEXT"
        )
    if len(action.reason) > MAX_REASON:
        raise ConfigError(
            f"promote --{action.kind}: --reason has {len(action.reason):,} characters, at most "
            f"{MAX_REASON:,} are kept; shorten it"
        )
    if len(models) > 1 and action.kind != "repair" and not (selected and action.kind != "pin"):
        raise ConfigError(
            f"promote --{action.kind} changes one model; name it with --model: {', '.join(models)}"
        )


def change_champions(context: Context, action: ChampionAction, *, dry_run: bool = False) -> Result:
    """Do an action for the command's models, or say what it would do.

    Raises:
        ConfigError: the action does not apply, e.g. there is nothing to roll back to.
        DataError: the ledger is broken, or a model's folder is not whole.
        GenmodError: another command changed the champion meanwhile.
    """
    result: dict[str, Any] = {}
    worked, last = False, None
    for name in context.models:
        champions = Champions(context, name)
        promotions = _read(champions, action, dry_run)
        step = _STEPS[action.kind](champions, promotions, action)
        context.progress.log(f"{'would ' if dry_run else ''}{step.text}")
        if not dry_run:
            before, promotions = promotions.champion, _do(champions, promotions, step)
            worked |= step.sets_aliases
            if step.action is not None:
                renew_pages(champions, [before, promotions.champion])
        last = promotions.last
        result[name] = {"text": step.text, **champion_state(promotions)}
    return {
        "stage": "promote",
        "status": "planned" if dry_run else DONE if worked else ALREADY_DONE,
        "output": context.ledger_url,
        "fingerprint": last.digest if last else None,
        "champions": result,
    }


def champion_state(promotions: Promotions) -> dict[str, Any]:
    """Champion, previous and pin as JSON values."""
    found = {"champion": promotions.champion, "previous": promotions.previous}
    pin = promotions.pin
    return {
        **{key: model.model_dump(mode="json") if model else None for key, model in found.items()},
        "pinned": pin.reason if pin else None,
        "entries": len(promotions.entries),
    }


def _read(champions: Champions, action: ChampionAction, dry_run: bool) -> Promotions:
    """The history; repairs and adoptions start from differences that other actions refuse."""
    if action.kind in ("repair", "adopt"):
        return champions.ledger.read()
    return champions.peek() if dry_run else champions.read()


def _do(champions: Champions, promotions: Promotions, step: _Step) -> Promotions:
    """Write the entry and set the aliases."""
    if step.action is not None:
        assert step.model is not None
        written = champions.write(promotions, step.action, step.model, step.reason)
        if written is None:
            raise GenmodError(
                f"{champions.name}: another command changed the champion meanwhile; look at it with genmod "
                "models, then run this command again"
            )
        promotions = written
    if step.sets_aliases:
        champions.follow()
    return promotions


def _rollback(champions: Champions, promotions: Promotions, action: ChampionAction) -> _Step:
    champion, previous = promotions.champion, promotions.previous
    _refuse_pinned(champions, promotions, action)
    if champion is None or previous is None:
        first = f"{champion.label} is the first champion" if champion else "there is no champion"
        raise ConfigError(
            f"{champions.name}: nothing to roll back to: {first}; genmod promote --pin VERSION chooses "
            "another version"
        )
    check_whole(champions, previous)
    text = f"{champions.name}: rollback from {champion.label} to {previous.label}"
    return _Step(text, "rollback", previous, action.reason or "rolled back by command")


def _pin(champions: Champions, promotions: Promotions, action: ChampionAction) -> _Step:
    model, champion = find_model(champions, promotions, action.version), promotions.champion
    check_whole(champions, model)
    replaced = ""
    if champion is not None and champion.digest != model.digest:
        replaced = f", which replaces {champion.label}"
    text = f"{champions.name}: pin {model.label}{replaced}: {action.reason}"
    return _Step(text, "pin", model, action.reason)


def _unpin(champions: Champions, promotions: Promotions, action: ChampionAction) -> _Step:
    if promotions.pin is None or promotions.champion is None:
        raise ConfigError(
            f"{champions.name}: the champion is not pinned; genmod models shows what is"
        )
    text = f"{champions.name}: unpin {promotions.champion.label}; the next promotion may replace it"
    return _Step(text, "unpin", promotions.champion, action.reason or "unpinned by command")


def _repair(champions: Champions, promotions: Promotions, action: ChampionAction) -> _Step:
    aliases = registry.aliases(champions.context.tracker, champions.name)
    state = compare_aliases(promotions, alias_digests(aliases))
    if promotions.champion is None and state.kind == "drift":
        raise ConfigError(
            f"{champions.name}: the ledger has no champion to repair MLflow's aliases with; record MLflow's "
            "with genmod promote --adopt --reason TEXT"
        )
    if state.kind == "equal":
        text = f"{champions.name}: repair nothing: MLflow's aliases are as the ledger says"
        return _Step(text, sets_aliases=False)
    text = f"{champions.name}: repair MLflow's aliases: {state.text}"
    if state.kind == "behind":
        return _Step(text)
    return _Step(text, "repair", promotions.champion, action.reason or state.text)


def _adopt(champions: Champions, promotions: Promotions, action: ChampionAction) -> _Step:
    aliases = registry.aliases(champions.context.tracker, champions.name)
    champion = promotions.champion
    if aliases.champion is None:
        raise ConfigError(
            f"{champions.name}: MLflow has no alias {registry.CHAMPION_ALIAS!r} to adopt; genmod promote "
            "--repair sets it to what the ledger says"
        )
    if champion is not None and champion.digest == aliases.champion.digest:
        raise ConfigError(
            f"{champions.name}: MLflow's champion is {champion.label}, as the ledger says, so there is "
            "nothing to adopt; other differences are repaired by genmod promote --repair"
        )
    _refuse_pinned(champions, promotions, action)
    model = champions.ledger_model(aliases.champion)
    check_whole(champions, model)
    replaced = f", which replaces {champion.label}" if champion else ""
    text = f"{champions.name}: adopt {model.label}{replaced}: {action.reason}"
    return _Step(text, "adopt", model, action.reason)


def _refuse_pinned(champions: Champions, promotions: Promotions, action: ChampionAction) -> None:
    if (pin := promotions.pin) is not None:
        raise ConfigError(
            f"{champions.name}: the champion is pinned by entry {pin.number} ({pin.reason}), so "
            f"--{action.kind} does not change it; first genmod promote --unpin"
        )


_STEPS: dict[ActionKind, Callable[[Champions, Promotions, ChampionAction], _Step]] = {
    "rollback": _rollback,
    "pin": _pin,
    "unpin": _unpin,
    "repair": _repair,
    "adopt": _adopt,
}
