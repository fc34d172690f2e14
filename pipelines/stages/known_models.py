"""The models that a person can name: those of the ledger, of MLflow, and of the recipe's folders."""

from __future__ import annotations

import re

from genmod import storage
from genmod.errors import ConfigError, DataError, sanitize
from genmod.manifest import Manifest, find_problems
from genmod.manifest.folders import VERSIONS_FOLDER
from genmod.promotion import Evidence, LedgerModel, Promotions
from pipelines.stages.champions import Champions
from pipelines.tracking import registry

_MIN_PREFIX = 8
"""Digits of a digest that name a model."""

_MODELS, _SHOWN = "models", 20


def known_models(champions: Champions, promotions: Promotions) -> list[LedgerModel]:
    """All models of one name: registered versions by number, then others. Writes nothing.

    Their folders are only named: :func:`find_model` checks the one that is used.
    """
    context = champions.context
    known = {entry.model.digest: entry.model for entry in promotions.entries}
    versions = None
    if context.tracker.place.exists:
        versions = champions.ask(
            lambda: registry.registered_versions(context.tracker, champions.name)
        )
    for version in versions or ():
        model = known.get(version.digest)
        if model is None and version.root:
            model = LedgerModel(digest=version.digest, root=version.root)
        if model is not None:
            registered = {"registered": version.name, "version": int(version.version)}
            known[version.digest] = model.model_copy(update=registered)
    for root in _folders(champions):
        manifest = context.snapshot.load(Manifest, root, "model")
        if manifest is not None and manifest.digest not in known:
            known[manifest.digest] = LedgerModel(digest=manifest.digest, root=root)
    return sorted(known.values(), key=lambda model: (model.version is None, model.version or 0))


def find_model(champions: Champions, promotions: Promotions, text: str) -> LedgerModel:
    """The model that a version's number or the start of a digest names, with its evaluation if it has one.

    Raises:
        ConfigError: there is no such model, several fit, or its folder is not where the recipe allows it.
    """
    known = known_models(champions, promotions)
    found = [model for model in known if str(model.version) == text]
    if not found and re.fullmatch(rf"[0-9a-f]{{{_MIN_PREFIX},64}}", text):
        found = [model for model in known if model.digest.startswith(text)]
    if len(found) != 1:
        problem = "no version" if not found else f"{len(found)} models are called"
        valid = ", ".join(model.label for model in known[-_SHOWN:]) or "none yet"
        raise ConfigError(
            f"{champions.name}: {problem} {sanitize(text[:80])!r}; give a version's number or at least "
            f"{_MIN_PREFIX} digits of a digest; known: {valid}"
        )
    model = found[0]
    champions.allowed(model.root, f"the folder of {model.label}")
    return with_evaluation(champions, model)


def with_evaluation(champions: Champions, model: LedgerModel) -> LedgerModel:
    """The model with the evaluation next to it, if it names none and that is of this model."""
    root = sibling(model.root, "evaluation")
    if model.evaluation is not None or root is None:
        return model
    manifest = champions.context.snapshot.load(Manifest, root, "evaluation")
    if manifest is None or manifest.metadata.get("model_digest") != model.digest:
        return model
    evaluation = Evidence(root=root, digest=manifest.digest)
    return model.model_copy(update={"evaluation": evaluation})


def check_whole(champions: Champions, model: LedgerModel) -> None:
    """Check every file of a model by its digest.

    Raises:
        DataError: the folder has no such model, or a file is missing or changed.
    """
    root = champions.allowed(model.root, f"the folder of {model.label}")
    remedy = "restore that folder, or choose another version"
    manifest = champions.context.snapshot.load(Manifest, root, "model")
    if manifest is None:
        raise DataError(
            f"{model.label} of {champions.name} is not whole: no model at {root}; {remedy}"
        )
    if manifest.digest != model.digest:
        raise DataError(
            f"{model.label} of {champions.name} is not whole: {root} contains the model "
            f"{manifest.digest[:12]}; {remedy}"
        )
    problems = find_problems(root, manifest.files)
    if problems:
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        raise DataError(
            f"{model.label} of {champions.name} is not whole: {problems[0]}{more}; {remedy}"
        )


def sibling(model_root: str, folder: str) -> str | None:
    """The folder of the same name next to a model: of its ``evaluation`` or ``decision``.

    >>> sibling("s3://b/run/retrain/v0002/models/vae", "evaluation")
    's3://b/run/retrain/v0002/evaluation/vae'
    """
    top, _, name = model_root.rpartition("/")
    root, _, models = top.rpartition("/")
    return storage.join(root, folder, name) if models == _MODELS and root else None


def _folders(champions: Champions) -> list[str]:
    """The folders of all versions of the dataset in which the model may be."""
    top = champions.context.recipe.root
    versions = storage.join(top, VERSIONS_FOLDER)
    names = [name for name in storage.list_names(versions) if re.fullmatch(r"v[0-9]{4,9}", name)]
    roots = [top, *(storage.join(versions, name) for name in names)]
    return [storage.join(root, _MODELS, champions.name) for root in roots]
