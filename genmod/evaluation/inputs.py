"""What an evaluation reads from the manifests of its inputs, typed where it is read."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from genmod.documents import validate
from genmod.errors import DataError
from genmod.manifest import Manifest
from genmod.scoring.label import ScoreLabel

_REMEDY = "remove that folder and run its stage again"

_Text = Annotated[str, Field(max_length=1_000)]


class _Part(BaseModel):
    """Some fields of a document; others are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class OodInput(_Part):
    """What out-of-distribution detection reads from the manifest of scores."""

    split: _Text
    rare: dict[_Text, Annotated[float, Field(ge=0, allow_inf_nan=False)]]


def ood_input(manifest: Manifest, root: str) -> OodInput:
    """The rare rows of scores by column, and their split. DataError if the manifest lacks them."""
    return validate(OodInput, manifest.metadata, "the scores of a dataset", root, _REMEDY)


class _Decision(_Part):
    """What is read of the decision on a model."""

    promote: StrictBool
    reasons: tuple[Annotated[str, Field(max_length=10_000)], ...] = Field(max_length=1_000)
    candidate: dict[str, Any]
    champion: dict[str, Any] | None


def checked_decision(manifest: Manifest, root: str) -> Manifest:
    """A published decision, if it is one. DataError if it lacks what is read, or the model's digest."""
    validate(
        _Decision, manifest.metadata, "a decision", root, "remove that folder and promote again"
    )
    parent_of(manifest, "model", root)
    return manifest


def score_label(manifest: Manifest, root: str) -> ScoreLabel:
    """The label of scores. DataError if their manifest has none."""
    names = ScoreLabel.model_fields
    fields = {name: value for name, value in manifest.metadata.items() if name in names}
    return validate(ScoreLabel, fields, "the scores of a dataset", root, _REMEDY)


def parent_of(manifest: Manifest, name: str, root: str) -> str:
    """The digest of an input. DataError if the manifest does not name it."""
    digest = manifest.parents.get(name)
    if digest is None:
        raise DataError(f"{root}: its manifest names no {name} among its inputs; {_REMEDY}")
    return digest


def sampling_settings(manifest: Manifest, root: str) -> dict[str, Any]:
    """How a synthetic dataset was sampled. DataError if its manifest says it in another form."""
    settings: Any = manifest.metadata.get("sample", {})
    return validate(
        _Settings, {"settings": settings}, "a synthetic dataset", root, _REMEDY
    ).settings


class _Settings(_Part):
    settings: dict[str, Any]
