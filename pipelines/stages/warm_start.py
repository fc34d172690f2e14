"""Warm starts: a later version's model starts from the champion's weights, chosen once for each version.

The choice is a small object, ``retrain/vNNNN/start/NAME.json``, so that a retrain that resumes after the
champion has changed continues the same training.
"""

from __future__ import annotations

from pydantic import Field

from genmod import storage
from genmod.config import Config, canonical_json
from genmod.documents import parse_document
from genmod.interface.model_store import classes_of
from genmod.manifest.class_match import Classes
from genmod.storage import RelativePath
from genmod.training.job import InitialModel
from pipelines.recipe.context import Context
from pipelines.stages.champions import Champions

_START_BYTES = 4096


class StartChoice(Config):
    """The model whose weights a training starts from."""

    path: RelativePath | None
    """Of its folder, below the recipe's root; None: random weights, since there is no champion there."""
    digest: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")


def choose_start(context: Context, cycle: Context, name: str) -> None:
    """Choose the champion as the start of a version's model, unless a choice was made.

    Args:
        context: the command.
        cycle: the same on the version's root.
        name: of the model in the recipe.
    """
    url = _choice_url(cycle, name)
    if storage.exists(url):
        return
    champion = Champions(context, name).read().champion
    choice, why = StartChoice(path=None), "no champion is below the root"
    if champion is not None and storage.is_below(champion.root, context.command_root):
        path = champion.root.removeprefix(context.command_root.rstrip("/")).lstrip("/")
        if reason := _new_class(context, cycle, champion.root):
            why = reason
        else:
            choice = StartChoice(path=path, digest=champion.digest)
    text = choice.path or f"random weights: {why}"
    context.progress.log(f"  {name} starts from {text}")
    context.create(url, canonical_json(choice.model_dump(mode="json")))


def _new_class(context: Context, cycle: Context, champion_root: str) -> str:
    """Why a version's classes do not fit the champion's weights; empty if they do."""
    model = context.snapshot.model(champion_root)
    data = cycle.dataset()
    names, classes = classes_of(model).class_names, model.config.spec.classes
    if (names, classes) == (data.class_names, data.spec.classes):
        return ""
    return f"the champion has {Classes(champion_root, classes, names)}, not those of the version"


def chosen_start(cycle: Context, name: str) -> InitialModel | None:
    """The start that was chosen for a version's model; None: random weights.

    Raises:
        DataError: the choice is invalid.
    """
    if cycle.recipe.root == cycle.command_root:
        return None  # version 1
    url = _choice_url(cycle, name)
    try:
        data = storage.read_bytes(url, _START_BYTES)
    except FileNotFoundError:
        return None
    hint = "remove it and run genmod retrain again"
    choice = parse_document(StartChoice, data, "the choice of a start", url, hint)
    if choice.path is None:
        return None
    root = storage.join_below(cycle.command_root, choice.path)
    return InitialModel(root=root, digest=choice.digest, is_warm=True)


def _choice_url(cycle: Context, name: str) -> str:
    return cycle.at("start", f"{name}.json")
