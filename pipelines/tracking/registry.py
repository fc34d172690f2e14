"""The model registry: versions of models, and which of them is the champion.

Unlike tracking, a question to the registry waits for its answer, and fails if there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from genmod import storage
from genmod.config import Config
from pipelines.tracking.run import TAG_PREFIX, TrackedRun
from pipelines.tracking.tracker import Tracker

CHAMPION_ALIAS = "champion"

REGISTERED_FILES = ("config.json", "ema.safetensors", "model.json")
"""What of a model's folder goes into the registry, beside the recipe."""

_ARTIFACT_FOLDER = "model"
"""Of a run's artifacts."""


class ModelVersion(Config):
    """A version of a registered model."""

    name: str
    """As it is registered, e.g. ``genmod-vae``."""
    version: str
    digest: str
    """Of the model's manifest; empty if genmod did not register it."""
    root: str
    """URL of the model's folder."""
    evaluation: str
    """URL of the folder with its evaluation, empty if it has none yet."""


@dataclass(frozen=True)
class ModelEntry:
    """A trained model to register."""

    name: str
    """In the recipe, e.g. ``vae``."""
    digest: str
    root: str
    recipe_yaml: str


def registered_name(tracker: Tracker, name: str) -> str:
    """Name in the registry of a recipe's model."""
    return f"{tracker.config.prefix or tracker.config.experiment}-{name}"


def register_in_background(tracker: Tracker, run: TrackedRun, candidate: ModelEntry) -> None:
    """Register a model as a version, in the background; nothing happens if it is one already."""
    run.submit(lambda run_id: _ensure(tracker, run_id, candidate))


def register(tracker: Tracker, run: TrackedRun, candidate: ModelEntry) -> ModelVersion:
    """The version that holds a model; it is made if there is none, with ``run`` as its source.

    Raises:
        TrackingError: MLflow does not answer.
    """
    return tracker.ask(lambda _: _ensure(tracker, run.run_id or "", candidate))


def version_of(tracker: Tracker, name: str, digest: str) -> ModelVersion | None:
    """The version that holds a model, by the digest of its manifest.

    Raises:
        TrackingError: MLflow does not answer.
    """
    return tracker.ask(lambda client: _find(client, registered_name(tracker, name), digest))


def champion(tracker: Tracker, name: str) -> ModelVersion | None:
    """The version that the alias ``champion`` points to, None if there is none.

    Raises:
        TrackingError: MLflow does not answer.
    """
    return tracker.ask(lambda client: _champion(client, registered_name(tracker, name)))


def set_champion(tracker: Tracker, version: ModelVersion) -> None:
    """Point the alias to a version. Doing it twice does no harm.

    Raises:
        TrackingError: MLflow does not answer.
    """
    tracker.ask(
        lambda client: client.set_registered_model_alias(
            version.name, CHAMPION_ALIAS, version.version
        )
    )


def tag_evaluation(tracker: Tracker, version: ModelVersion, url: str) -> ModelVersion:
    """Note on a version where its evaluation is.

    Raises:
        TrackingError: MLflow does not answer.
    """
    key = f"{TAG_PREFIX}evaluation"
    if version.evaluation != url:
        tracker.ask(
            lambda client: client.set_model_version_tag(version.name, version.version, key, url)
        )
    return version.model_copy(update={"evaluation": url})


def _champion(client: Any, name: str) -> ModelVersion | None:
    if not client.search_registered_models(f"name = '{name}'"):
        return None
    number = client.get_registered_model(name).aliases.get(CHAMPION_ALIAS)
    return None if number is None else _version(client.get_model_version(name, str(number)))


def _find(client: Any, name: str, digest: str) -> ModelVersion | None:
    found = client.search_model_versions(
        f"name = '{name}' and tags.`{TAG_PREFIX}digest` = '{digest}'"
    )
    return _version(found[0]) if found else None


def _ensure(tracker: Tracker, run_id: str, candidate: ModelEntry) -> ModelVersion:
    client = tracker.client()
    name = registered_name(tracker, candidate.name)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    if (found := _find(client, name, candidate.digest)) is not None:
        return found
    assert run_id, "a model is registered from a run that was opened"
    for file in REGISTERED_FILES:
        tracker.upload(run_id, storage.join(candidate.root, file), _ARTIFACT_FOLDER)
    client.log_text(run_id, candidate.recipe_yaml, f"{_ARTIFACT_FOLDER}/recipe.yaml")
    tags = {f"{TAG_PREFIX}digest": candidate.digest, f"{TAG_PREFIX}root": candidate.root}
    source = f"runs:/{run_id}/{_ARTIFACT_FOLDER}"
    return _version(client.create_model_version(name, source=source, run_id=run_id, tags=tags))


def _version(found: Any) -> ModelVersion:
    return ModelVersion(
        name=str(found.name),
        version=str(found.version),
        digest=found.tags.get(f"{TAG_PREFIX}digest", ""),
        root=found.tags.get(f"{TAG_PREFIX}root", ""),
        evaluation=found.tags.get(f"{TAG_PREFIX}evaluation", ""),
    )
