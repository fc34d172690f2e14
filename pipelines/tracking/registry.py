"""The model registry: versions of models, and which of them is the champion.

Unlike tracking, a request to the registry waits for its result, and fails without one.
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
"""Files of a model's folder that are copied to the registry, together with the recipe."""

_ARTIFACT_FOLDER = "model"
"""Folder of a run's artifacts for the model."""


class ModelVersion(Config):
    """A version of a registered model."""

    name: str
    """Registered name, e.g. ``genmod-vae``."""
    version: str
    digest: str
    """Digest of the model's manifest; empty if genmod did not register the version."""
    root: str
    """URL of the model's folder."""
    evaluation: str
    """URL of the folder with its evaluation; empty if it is not evaluated."""


@dataclass(frozen=True)
class ModelEntry:
    """A trained model to register."""

    name: str
    """In the recipe, e.g. ``vae``."""
    digest: str
    root: str
    recipe_yaml: str


def registered_name(tracker: Tracker, name: str) -> str:
    """The registered name of a recipe's model, ``PREFIX-NAME``."""
    return f"{tracker.config.prefix or tracker.config.experiment}-{name}"


def register_in_background(tracker: Tracker, run: TrackedRun, entry: ModelEntry) -> None:
    """Register a model as a version, in the background; does nothing if it is registered."""
    run.submit(lambda run_id: _ensure(tracker, run_id, entry))


def register(tracker: Tracker, run: TrackedRun, entry: ModelEntry) -> ModelVersion:
    """The version of a model; created with ``run`` as its source if it does not exist.

    Raises:
        TrackingError: MLflow does not respond.
    """
    return tracker.query(lambda _: _ensure(tracker, run.run_id or "", entry))


def version_of(tracker: Tracker, name: str, digest: str) -> ModelVersion | None:
    """The version of a model, by the digest of its manifest; None if it is not registered.

    Raises:
        TrackingError: MLflow does not respond.
    """
    return tracker.query(lambda client: _find(client, registered_name(tracker, name), digest))


def champion(tracker: Tracker, name: str) -> ModelVersion | None:
    """The version that the alias ``champion`` points to, None if there is none.

    Raises:
        TrackingError: MLflow does not respond.
    """
    return tracker.query(lambda client: _champion(client, registered_name(tracker, name)))


def set_champion(tracker: Tracker, version: ModelVersion) -> None:
    """Point the alias ``champion`` to a version. Idempotent.

    Raises:
        TrackingError: MLflow does not respond.
    """
    tracker.query(
        lambda client: client.set_registered_model_alias(
            version.name, CHAMPION_ALIAS, version.version
        )
    )


def tag_evaluation(tracker: Tracker, version: ModelVersion, url: str) -> ModelVersion:
    """Record the URL of its evaluation as a tag of a version.

    Raises:
        TrackingError: MLflow does not respond.
    """
    key = f"{TAG_PREFIX}evaluation"
    if version.evaluation != url:
        tracker.query(
            lambda client: client.set_model_version_tag(version.name, version.version, key, url)
        )
    return version.model_copy(update={"evaluation": url})


def _champion(client: Any, name: str) -> ModelVersion | None:
    if not client.search_registered_models(f"name = '{name}'"):
        return None
    number = client.get_registered_model(name).aliases.get(CHAMPION_ALIAS)
    return None if number is None else _version(client.get_model_version(name, str(number)))


def _find(client: Any, name: str, digest: str) -> ModelVersion | None:
    condition = f"name = '{name}' and tags.`{TAG_PREFIX}digest` = '{digest}'"
    versions = client.search_model_versions(condition)
    return _version(versions[0]) if versions else None


def _ensure(tracker: Tracker, run_id: str, entry: ModelEntry) -> ModelVersion:
    """The version of a model, created if it does not exist."""
    client = tracker.client()
    name = registered_name(tracker, entry.name)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    if (version := _find(client, name, entry.digest)) is not None:
        return version
    assert run_id, "a model is registered from a run that was opened"
    for file in REGISTERED_FILES:
        tracker.upload(run_id, storage.join(entry.root, file), _ARTIFACT_FOLDER)
    client.log_text(run_id, entry.recipe_yaml, f"{_ARTIFACT_FOLDER}/recipe.yaml")
    tags = {f"{TAG_PREFIX}digest": entry.digest, f"{TAG_PREFIX}root": entry.root}
    source = f"runs:/{run_id}/{_ARTIFACT_FOLDER}"
    return _version(client.create_model_version(name, source=source, run_id=run_id, tags=tags))


def _version(version: Any) -> ModelVersion:
    return ModelVersion(
        name=str(version.name),
        version=str(version.version),
        digest=version.tags.get(f"{TAG_PREFIX}digest", ""),
        root=version.tags.get(f"{TAG_PREFIX}root", ""),
        evaluation=version.tags.get(f"{TAG_PREFIX}evaluation", ""),
    )
