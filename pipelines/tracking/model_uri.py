"""Versions of models by their URI in MLflow's registry."""

from __future__ import annotations

from typing import Any

from genmod.errors import ConfigError
from pipelines.tracking.registry import ModelVersion, version_from
from pipelines.tracking.tracker import Tracker


def version_at(tracker: Tracker, uri: str) -> ModelVersion:
    """The version that ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` names.

    Raises:
        ConfigError: there is none, or genmod did not write it.
        TrackingError: MLflow does not respond.
    """
    path = uri.removeprefix("models:/")
    name, _, alias = path.partition("@")
    name, _, number = (name, "", "") if alias else path.rpartition("/")

    def find(client: Any) -> ModelVersion | None:
        versions = client.search_model_versions(f"name = '{name}'")
        asked = number
        if versions and alias:
            asked = str(client.get_registered_model(name).aliases.get(alias, ""))
        return next((version_from(name, v) for v in versions if str(v.version) == asked), None)

    version = tracker.query(find)
    if version is None or not version.digest:
        raise ConfigError(
            f"MLflow at {tracker.uri} has no {uri} that genmod registered; "
            "list versions with genmod models"
        )
    return version
