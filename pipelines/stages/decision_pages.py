"""Writes the page of a decision once it is published, and says in words what became of it."""

from __future__ import annotations

from collections.abc import Iterable

from genmod import storage
from genmod.documents import validate
from genmod.errors import GenmodError
from genmod.manifest import Manifest
from genmod.promotion import Evidence, LedgerEntry, LedgerModel, Promotions
from pipelines.jobs.decision_page import DECISION_PAGE, DecisionPageJob
from pipelines.recipe.context import Context
from pipelines.stages.champions import Champions
from pipelines.stages.decisions import (
    PublishedDecision,
    champion_folder,
    decided,
    decision_work,
    decisions_at,
)
from pipelines.stages.known_models import sibling

_SHOWN = 10
"""Entries of the ledger on a page, the newest ones."""


def write_decision_page(champions: Champions, decision: PublishedDecision, *, renew: bool) -> str:
    """Write the page of a decision if it is missing or out of date.

    A decision stands without its page: what prevents it is logged.

    Args:
        champions: of the model.
        decision: a published one.
        renew: whether the decision was made or applied by this command, so that an older page is wrong.

    Returns:
        The page's URL; empty if it could not be made.
    """
    context, name = champions.context, champions.name
    try:
        job = _page_job(champions, decision)
        if renew or not storage.exists(job.page_url):
            job.do(context.snapshot)
    except GenmodError as error:
        context.progress.log(f"  {name}: the decision has no page: {error}")
        return ""
    return job.page_url


def renew_pages(champions: Champions, models: Iterable[LedgerModel | None]) -> None:
    """Write the pages of the decisions on some models again, since the ledger says more about them now.

    A page that was never written, or whose decision was made by other rules than the recipe's, stays as it
    is. What prevents a page is logged.

    Args:
        champions: of the models.
        models: those that an entry of the ledger concerns.
    """
    for model in {each.digest: each for each in models if each is not None}.values():
        try:
            root = champions.allowed(model.root, f"the folder of {model.label}")
            decision_root = sibling(root, "decision") or root
            decisions = decisions_at(decision_root, champions.context.snapshot)
            version = champions.context.with_root(root.rpartition("/models/")[0])
            of_version = Champions(version, champions.name)
            for at, manifest in decisions:
                if _may_renew(of_version, at, manifest, model):
                    published = PublishedDecision(manifest, at, is_new=False)
                    write_decision_page(of_version, published, renew=True)
        except GenmodError as error:
            champions.context.progress.log(
                f"  {champions.name}: the pages of {model.label} are as before: {error}"
            )


def _may_renew(champions: Champions, root: str, decision: Manifest, model: LedgerModel) -> bool:
    """Whether a decision is one on a model by the recipe's rules, and has a page."""
    parents, rules = decision.parents, champions.context.recipe.promote
    work = decision_work(model.digest, parents.get("evaluation", ""), rules)
    is_same = parents.get("model") == model.digest and decision.fingerprint == work
    return is_same and storage.exists(storage.join(root, DECISION_PAGE))


def _page_job(champions: Champions, decision: PublishedDecision) -> DecisionPageJob:
    context, manifest = champions.context, decision.manifest
    content, promotions = decided(manifest), champions.ledger.read()
    candidate, champion = (
        _ledger_model(each, decision.root) if each is not None else None
        for each in (content.candidate, content.champion)
    )
    assert candidate is not None
    compared = champion if champion is not None and champion.digest != candidate.digest else None
    entry = promotions.applied(manifest.digest)
    url = champions.ledger.entry_url(entry.number) if entry else ""
    return DecisionPageJob(
        title=f"genmod decision: {champions.name}",
        root=decision.root,
        headline=_headline(candidate, champion, promote=content.promote),
        applied=_applied(promotions, manifest, candidate, promote=content.promote),
        policy=context.recipe.promote,
        candidate=candidate,
        champion=_with_evaluation(champions, compared) if compared else None,
        comparisons=_comparisons(context, champions.name, compared, manifest),
        entry=(f"entry {entry.number} of the ledger", url, entry.digest) if entry else None,
        tracking=context.tracker.ui_command(),
    )


def _ledger_model(fields: object, root: str) -> LedgerModel:
    remedy = "remove that folder and promote again"
    return validate(LedgerModel, fields, "a decision on a model", root, remedy)


def _with_evaluation(champions: Champions, champion: LedgerModel) -> LedgerModel:
    """The champion with the evaluation to show: that made for the decision, else its own if it is there."""
    context = champions.context
    root = storage.join(champion_folder(context, champions.name, champion.digest), "evaluation")
    made = context.snapshot.load(Manifest, root, "evaluation")
    if made is not None:
        evidence = Evidence(root=root, digest=made.digest)
        return champion.model_copy(update={"evaluation": evidence})
    own = champion.evaluation
    if own is not None:
        champions.allowed(own.root, f"the evaluation of {champion.label}")
        champions.allowed(champion.root, f"the model of {champion.label}")
        if context.snapshot.load(Manifest, own.root, "evaluation") is not None:
            return champion
    return champion.model_copy(update={"evaluation": None})


def _comparisons(
    context: Context, name: str, champion: LedgerModel | None, decision: Manifest
) -> dict[str, str]:
    """Name and URL of the paired comparisons, which exist if a retrain made the decision."""
    if champion is None:
        return {}
    folder = champion_folder(context, name, champion.digest)
    comparisons = {"comparison": storage.join(folder, "comparison")}
    images = decision.metadata.get("images")
    if isinstance(images, int):
        more = storage.join(folder, f"images-{images}", "comparison")
        comparisons[f"comparison of {images:,} images"] = more
    return comparisons


def _headline(candidate: LedgerModel, champion: LedgerModel | None, *, promote: bool) -> str:
    if champion is not None and champion.digest == candidate.digest:
        return f"The candidate, {candidate.label}, is the champion already."
    if promote:
        replaced = f" It replaces {champion.label}." if champion else " It is the first champion."
        return f"The candidate, {candidate.label}, is to become the champion.{replaced}"
    stays = f"{champion.label} stays the champion" if champion else "there is no champion yet"
    return f"The candidate, {candidate.label}, is not promoted: {stays}."


def _applied(
    promotions: Promotions, decision: Manifest, candidate: LedgerModel, *, promote: bool
) -> str:
    """What became of a decision, and of its candidate since, when its page was written."""
    entry = promotions.applied(decision.digest)
    first = _outcome(promotions, entry, candidate, promote=promote)
    later = [
        e for e in promotions.of_model(candidate.digest) if entry is None or e.number > entry.number
    ]
    if not later:
        return first
    shown = [f"entry {e.number}, {_time(e)}, {e.action} by {e.author}: {e.reason}" for e in later]
    more = f"; the first {len(shown) - _SHOWN} are left out" if shown[_SHOWN:] else ""
    now = promotions.champion
    state = f" The champion after entry {len(promotions.entries)} is {now.label}." if now else ""
    return f"{first} The ledger says more about the candidate{more}: {'; '.join(shown[-_SHOWN:])}.{state}"


def _outcome(
    promotions: Promotions, entry: LedgerEntry | None, candidate: LedgerModel, *, promote: bool
) -> str:
    """Whether a decision was applied, by which entry, and if not, why."""
    if not promote:
        return "There was nothing to apply."
    if entry is not None:
        return f"Applied by entry {entry.number} of the promotion ledger, {_time(entry)}, by {entry.author}."
    champion, pin = promotions.champion, promotions.pin
    if champion is not None and champion.digest == candidate.digest:
        return "There was nothing to apply."
    if (number := promotions.rolled_back.get(candidate.digest)) is not None:
        return f"Not applied: entry {number} of the promotion ledger rolled the candidate back."
    if pin is not None:
        return f"Not applied: entry {pin.number} of the promotion ledger pins the champion: {pin.reason}"
    return "Not applied."


def _time(entry: LedgerEntry) -> str:
    return f"{entry.time[:16].replace('T', ' ')} UTC"
