"""Finds, claims and publishes the work of a stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

from genmod import storage
from genmod.budget import BUDGET
from genmod.config import Config
from genmod.documents import parse_document, parse_json, validate
from genmod.errors import ConfigError, DataError, GenmodError
from genmod.manifest.schema import ManifestT, has_own_digest
from genmod.memory import no_garbage_collection

MANIFEST_NAMES = {
    "dataset": "dataset.json",
    "model": "model.json",
    "scores": "scores.json",
    "evaluation": "evaluation.json",
    "features": "features.json",
    "report": "report.json",
    "comparison": "comparison.json",
    "decision": "decision.json",
    "drift": "drift.json",
    "export": "export.json",
}
"""File name of each kind's manifest."""

INPUTS_CHECKED = "inputs_checked"
"""Key of a manifest's metadata: false if ``storage.check_digests`` was off when its inputs were read."""


def load_manifest(schema: type[ManifestT], root: str, kind: str) -> ManifestT | None:
    """The manifest in a folder, or None if there is none. DataError if it is invalid or was changed."""
    url = storage.join(root, MANIFEST_NAMES[kind])
    try:
        data = storage.read_bytes(url, limit_bytes=BUDGET.document_bytes)
    except FileNotFoundError:
        return None
    hint = "remove its folder and run the stage again"
    with (
        no_garbage_collection()
    ):  # which would look at each of a large manifest's objects many times
        values: Any = parse_json(data, url, hint)
        manifest = validate(schema, values, f"a valid {kind} manifest", url, hint)
    if not has_own_digest(values):
        raise DataError(f"{url} does not match its own digest: it was changed after it was written")
    if manifest.kind != kind:
        raise DataError(f"{url} is a manifest of another kind, expected {kind}; {hint}")
    return manifest


def require(schema: type[ManifestT], root: str, kind: str, made_by: str) -> ManifestT:
    """As :func:`load_manifest`; ConfigError that names the stage ``made_by`` if there is no manifest."""
    manifest = load_manifest(schema, root, kind)
    if manifest is None:
        raise missing_manifest(root, kind, made_by)
    return manifest


def missing_manifest(root: str, kind: str, made_by: str) -> ConfigError:
    """The error for a folder without a manifest; ``made_by`` is the command that writes one."""
    return ConfigError(f"no {kind} at {root}; create it first: genmod {made_by}")


def find_done(schema: type[ManifestT], root: str, kind: str, expected: str) -> ManifestT | None:
    """The manifest of finished work, or None if the work is not finished.

    Raises:
        ConfigError: the folder contains work with another fingerprint than ``expected``, finished or not.
    """
    return check_done(load_manifest(schema, root, kind), root, kind, expected)


def check_done(
    manifest: ManifestT | None,
    root: str,
    kind: str,
    expected: str,
    remedy: str | None = None,
    *,
    claimed_by: str | None = None,
) -> ManifestT | None:
    """As :func:`find_done`, for a manifest that was read before (None: the folder has none).

    Args:
        manifest: in the folder.
        root: URL of the folder.
        kind: of the manifest.
        expected: fingerprint of the work.
        remedy: what the user can do, the end of the error; that of a recipe's stage if not given.
        claimed_by: fingerprint with which unfinished work claims the folder; ``expected`` if not given.
    """
    present = manifest.fingerprint if manifest else _claimed(root)
    if not manifest and claimed_by is not None:
        expected = claimed_by
    if present is not None and present != expected:
        state = "contains" if manifest else "is being filled with"
        metadata = manifest.metadata if manifest else {}
        grown = "; if the source has new data, run genmod retrain" if "source" in metadata else ""
        article = {"scores": "", "evaluation": "an ", "export": "an "}.get(kind, "a ")
        section = "score" if kind == "scores" else "sample" if "sample" in metadata else None
        folder = f"another folder with --set {section}.output=NAME, " if section else ""
        if remedy is None:
            remedy = (
                f"choose {folder}another root with --set root=URL, or remove that folder{grown}"
            )
        raise ConfigError(
            f"{root} {state} {article}{kind} made from other inputs or settings "
            f"(fingerprint {present[:12]}, this command's is {expected[:12]}); {remedy}"
        )
    return manifest


_CLAIM = "claim.json"
_CLAIM_BYTES = 4096


class _Claim(Config):
    fingerprint: str


def claim(root: str, fingerprint: str) -> None:
    """Reserve a folder before its first file is written. ConfigError if it is reserved for other work."""
    storage.create(storage.join(root, _CLAIM), json.dumps({"fingerprint": fingerprint}).encode())
    if _claimed(root) != fingerprint:
        raise ConfigError(
            f"{root} was just claimed by another recipe; choose another root with --set root=URL"
        )


def release_claim(root: str, units: Collection[str]) -> None:
    """Release a folder whose work cannot be finished, and remove the receipts of its work units."""
    names = {f"{unit}.json" for unit in units}
    storage.remove_named(storage.join(root, "receipts"), names.__contains__)
    storage.remove_named(
        storage.join(root, "receipt-segments"), lambda name: name.endswith(".json")
    )
    storage.remove(storage.join(root, _CLAIM))


def is_claimed(names: Collection[str]) -> bool:
    """Whether a folder with these files is claimed and has no manifest: in progress, or lost."""
    return _CLAIM in names and not any(name in names for name in MANIFEST_NAMES.values())


def _claimed(root: str) -> str | None:
    url = storage.join(root, _CLAIM)
    try:
        data = storage.read_bytes(url, limit_bytes=_CLAIM_BYTES)
    except FileNotFoundError:
        return None
    hint = "remove it if no other command is filling that folder"
    return parse_document(_Claim, data, "a claim", url, hint).fingerprint


def publish(
    root: str, manifest: ManifestT, create: Callable[[str, bytes], bool] = storage.create
) -> ManifestT:
    """Seal and publish a manifest, as the last write of a stage.

    Args:
        root: URL of the folder.
        manifest: without its digest.
        create: writes an object if it does not exist; that of a lease, where only its holder may publish.

    Returns:
        The published manifest: this one, or that of another writer who was first.

    Raises:
        ConfigError: the other writer's manifest has another fingerprint.
        GenmodError: a number in its metadata is not finite.
    """
    url = storage.join(root, MANIFEST_NAMES[manifest.kind])
    if not storage.settings().check_digests:
        metadata = {**manifest.metadata, INPUTS_CHECKED: False}
        manifest = manifest.model_copy(update={"metadata": metadata})
    try:
        sealed = manifest.sealed()
    except ValueError as error:
        raise GenmodError(f"{url} was not written: {error}") from None
    text = json.dumps(sealed.model_dump(mode="json"), indent=1, allow_nan=False)
    if create(url, text.encode() + b"\n"):
        return sealed
    first = find_done(type(manifest), root, manifest.kind, manifest.fingerprint)
    if first is None:
        raise GenmodError(f"{url} was removed while it was written; run the command again")
    return first
