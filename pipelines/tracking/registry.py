"""The model registry: versions of models, and aliases that mirror the promotion ledger.

Unlike tracking, a request to the registry waits for its result, and fails without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from genmod import storage
from genmod.config import Config
from genmod.documents import validate
from genmod.errors import ConfigError, sanitize
from genmod.serving.settings import ServingSettings
from pipelines.tracking.mlflow_model import DATA_FOLDER, MODEL_FOLDER, model_files
from pipelines.tracking.records import ModelRecord
from pipelines.tracking.run import TAG_PREFIX, TrackedRun
from pipelines.tracking.tracker import Tracker, TrackingError

CHAMPION_ALIAS = "champion"
PREVIOUS_ALIAS = "previous"

_MARK_TAG = f"{TAG_PREFIX}ledger"
"""Tag of a registered model: the entry of the promotion ledger that its aliases follow."""

REGISTERED_FILES = ("config.json", "ema.safetensors", "model.json")
"""Files of a model's folder that are copied to the registry if it has no serving settings."""

_MODEL_TAG = f"{TAG_PREFIX}model"
"""Tag of a registered model: its name in recipes."""

_MAX_VERSIONS = 10_000
"""Versions of one model that are listed."""

Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
"""Type of a field: SHA-256 in hex, or empty."""


class ModelVersion(Config):
    """A version of a registered model."""

    name: str
    """Registered name, e.g. ``genmod-vae``."""
    version: str = Field(pattern=r"^[0-9]{1,18}$")
    digest: Digest
    """Digest of the model's manifest; empty if genmod did not register the version."""
    root: storage.Url | Literal[""]
    """URL of the model's folder. MLflow returned it: only :func:`model_root` may be read."""
    evaluation: storage.Url | Literal[""]
    """URL of the folder with its evaluation; empty if it is not evaluated. Only :func:`evaluation_root` may
    be read."""


@dataclass(frozen=True)
class ModelEntry:
    """A trained model to register."""

    name: str
    """In the recipe, e.g. ``vae``."""
    digest: str
    root: str
    recipe_yaml: str
    serving: ServingSettings | None = None
    """How it answers requests; None: its version cannot be served."""


@dataclass(frozen=True)
class RegisteredAliases:
    """The aliases of a registered model, and the mark of the ledger that they follow."""

    champion: ModelVersion | None
    previous: ModelVersion | None
    mark: str
    """Empty if none was set."""


def registered_name(tracker: Tracker, name: str) -> str:
    """The registered name of a recipe's model, ``PREFIX-NAME``; MLflow accepts every such name."""
    return f"{tracker.place.prefix}-{name}"


def register_in_background(tracker: Tracker, run: TrackedRun, entry: ModelEntry) -> None:
    """Register a model as a version, in the background; does nothing if it is registered."""

    def record(run: int) -> ModelRecord:
        return ModelRecord(run=run, **vars(entry))

    run.submit(lambda run_id: ensure_version(tracker, run_id, entry), record)


def register(tracker: Tracker, run: TrackedRun, entry: ModelEntry) -> ModelVersion:
    """The version of a model; created with ``run`` as its source if it does not exist.

    Raises:
        TrackingError: MLflow does not respond.
    """
    return tracker.query(lambda _: ensure_version(tracker, run.run_id or "", entry))


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
    return aliases(tracker, name).champion


def aliases(tracker: Tracker, name: str) -> RegisteredAliases:
    """The aliases of a model and their mark.

    Raises:
        TrackingError: MLflow does not respond.
    """
    return tracker.query(lambda client: _aliases(client, tracker, name))


def set_aliases(
    tracker: Tracker, champion: ModelVersion, previous: ModelVersion | None, mark: str
) -> None:
    """Point the aliases to versions, then set the mark. Idempotent.

    Args:
        tracker: MLflow.
        champion: version of the alias ``champion``.
        previous: version of the alias ``previous``, which is removed for None.
        mark: of the ledger's entry.

    Raises:
        TrackingError: MLflow does not respond.
    """

    def change(client: Any) -> None:
        name = champion.name
        client.set_registered_model_alias(name, CHAMPION_ALIAS, champion.version)
        if previous is not None:
            client.set_registered_model_alias(name, PREVIOUS_ALIAS, previous.version)
        elif PREVIOUS_ALIAS in client.get_registered_model(name).aliases:
            client.delete_registered_model_alias(name, PREVIOUS_ALIAS)
        client.set_registered_model_tag(name, _MARK_TAG, mark)

    tracker.query(change)


def registered_versions(tracker: Tracker, name: str) -> list[ModelVersion]:
    """All registered versions of a model that genmod wrote, oldest first.

    Raises:
        TrackingError: MLflow does not respond.
    """
    full = registered_name(tracker, name)

    def find(client: Any) -> list[ModelVersion]:
        found: list[Any] = []
        page_token = None
        while len(found) < _MAX_VERSIONS:
            page = client.search_model_versions(f"name = '{full}'", page_token=page_token)
            found += page
            page_token = page.token
            if not page_token:
                break
        return [version_from(full, version) for version in found]

    known = [version for version in tracker.query(find) if version.digest]
    return sorted(known, key=lambda version: int(version.version))


def model_root(tracker: Tracker, version: ModelVersion) -> str:
    """The folder of a version's model. ConfigError if MLflow names one that the recipe does not."""
    return tracker.followed(version.root, f"the model of {version.name} version {version.version}")


def evaluation_root(tracker: Tracker, version: ModelVersion) -> str:
    """The folder of a version's evaluation. ConfigError if MLflow names one that the recipe does not."""
    description = f"the evaluation of {version.name} version {version.version}"
    return tracker.followed(version.evaluation, description)


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


def _aliases(client: Any, tracker: Tracker, model: str) -> RegisteredAliases:
    name = registered_name(tracker, model)
    if not _is_registered(client, tracker, model):
        return RegisteredAliases(None, None, "")
    registered = client.get_registered_model(name)
    found = {alias: registered.aliases.get(alias) for alias in (CHAMPION_ALIAS, PREVIOUS_ALIAS)}
    champion, previous = (
        None if number is None else version_from(name, client.get_model_version(name, str(number)))
        for number in found.values()
    )
    return RegisteredAliases(champion, previous, str(registered.tags.get(_MARK_TAG, "")))


def _is_registered(client: Any, tracker: Tracker, model: str) -> bool:
    """Whether MLflow has the registered name of a recipe's model.

    Raises:
        ConfigError: it belongs to another model: ``a-b`` and ``c`` give the same name as ``a`` and ``b-c``.
    """
    name = registered_name(tracker, model)
    found = client.search_registered_models(f"name = '{name}'")
    owner = found[0].tags.get(_MODEL_TAG, model) if found else model
    if owner != model:
        raise ConfigError(
            f"{sanitize(name)} in MLflow belongs to the model {sanitize(owner)[:64]!r} of another prefix, "
            f"not to {model!r} with tracking.prefix={tracker.place.prefix}; set another tracking.prefix"
        )
    return bool(found)


def _find(client: Any, name: str, digest: str) -> ModelVersion | None:
    condition = f"name = '{name}' and tags.`{TAG_PREFIX}digest` = '{digest}'"
    versions = [version_from(name, version) for version in client.search_model_versions(condition)]
    return next((version for version in versions if version.digest == digest), None)


def ensure_version(tracker: Tracker, run_id: str, entry: ModelEntry) -> ModelVersion:
    """The version of a model, created if it does not exist. Only for calls in the background."""
    client = tracker.store.client()
    name = registered_name(tracker, entry.name)
    if not _is_registered(client, tracker, entry.name):
        client.create_registered_model(name, tags={_MODEL_TAG: entry.name})
    if (version := _find(client, name, entry.digest)) is not None:
        return version
    if not run_id:
        raise TrackingError(
            f"{name}: its run in MLflow could not be opened; rerun the same command"
        )
    _upload(tracker, run_id, entry)
    tags = {f"{TAG_PREFIX}digest": entry.digest, f"{TAG_PREFIX}root": entry.root}
    source = f"runs:/{run_id}/{MODEL_FOLDER}"
    version = client.create_model_version(name, source=source, run_id=run_id, tags=tags)
    return version_from(name, version)


def _upload(tracker: Tracker, run_id: str, entry: ModelEntry) -> None:
    """Copy a model to the artifacts of a run, as a model of MLflow."""
    data = f"{MODEL_FOLDER}/{DATA_FOLDER}"
    for file in REGISTERED_FILES if entry.serving is None else entry.serving.files:
        tracker.store.upload(run_id, storage.join(entry.root, file), data)
    texts = {"recipe.yaml": entry.recipe_yaml}
    if entry.serving is not None:
        texts |= model_files(entry.serving)
    for path, text in texts.items():
        folder, _, name = f"{MODEL_FOLDER}/{path}".rpartition("/")
        tracker.store.upload_text(run_id, text, name, folder)


def version_from(name: str, version: Any) -> ModelVersion:
    """The version as MLflow describes it. DataError if its tags are not those that genmod writes."""
    tags = {
        key: version.tags.get(f"{TAG_PREFIX}{key}", "") for key in ("digest", "root", "evaluation")
    }
    return validate(
        ModelVersion,
        {"name": name, "version": str(version.version), **tags},
        "a version that genmod wrote",
        f"{name} version {version.version} in MLflow",
        "correct or remove its tags, then rerun",
    )
