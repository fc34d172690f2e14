"""Manifests: a stage is done if and only if its manifest exists.

A stage writes its files first and its manifest last, by a create-if-absent write. The manifest lists every
file with size and digest, and carries the fingerprint of the configuration and inputs. When a finished stage
runs again, it finds the manifest and does nothing. A manifest with another fingerprint belongs to other work
and is never overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from genmod import storage
from genmod.config import Config, fingerprint
from genmod.errors import ConfigError, DataError

FORMAT = 1
"""Version of everything that is written below a root. Readers refuse newer versions."""

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class FileEntry(Config):
    """Path (relative to the manifest, or absolute), size and digest of one file."""

    path: str
    size_bytes: int
    sha256: str


class ImageSpec(Config):
    """Shape and pixel values of a dataset's images, and so of a model's samples."""

    channels: Literal[1, 3]
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    classes: int = Field(0, ge=0)
    """Number of labels; 0 without labels."""
    levels: Literal[2, 256] = 256
    """Number of pixel values: 256, or 2 for binary data (stored as 0 and 255)."""
    draw_seed: int | None = Field(default=None, exclude_if=lambda seed: seed is None)
    """Seed of binary data that is stored as grey levels: each pixel is on with probability grey / 255. Each
    row has one draw with this seed; training draws again at every use. See :mod:`genmod.data.format.binary`.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image, (C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def dims(self) -> int:
        """D = C H W, the divisor of bits per dimension."""
        return self.channels * self.height * self.width

    def __str__(self) -> str:
        labels = f"{self.classes} classes" if self.classes else "no labels"
        levels = f"{self.levels} levels"
        if self.draw_seed is not None:
            levels += f" drawn from greys with seed {self.draw_seed}"
        return f"{self.channels}x{self.height}x{self.width}, {levels}, {labels}"


class ShardEntry(Config):
    """One tar of a dataset with its index."""

    split: Split
    rows: int
    tar: FileEntry
    index: FileEntry


class Manifest(Config):
    """Result of a stage. ``digest`` covers all other fields."""

    kind: str
    """A key of :data:`MANIFEST_NAMES`, e.g. ``dataset`` or ``model``."""
    format: int = FORMAT
    fingerprint: str
    """Of the configuration and the digests of the inputs."""
    parents: dict[str, str] = {}
    """Digest of each input, by name."""
    files: tuple[FileEntry, ...] = ()
    metadata: dict[str, Any] = {}
    """JSON values that readers of this kind need, e.g. metrics with their labels."""
    digest: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.format > FORMAT:
            raise ValueError(
                f"format {self.format}, but this genmod reads up to {FORMAT}; update it"
            )
        return self

    def sealed(self) -> Self:
        """A copy with the digest filled in."""
        return self.model_copy(update={"digest": self._digest()})

    def _digest(self) -> str:
        return fingerprint(self.model_dump(mode="json", exclude={"digest"}))

    def is_whole(self) -> bool:
        """Whether the digest matches the fields."""
        return self.digest == self._digest()


class DatasetManifest(Manifest):
    """A dataset, real or synthetic: plain WebDataset tars, each with an index."""

    kind: str = "dataset"
    spec: ImageSpec
    shards: tuple[ShardEntry, ...]
    quarantined: int = 0
    """Number of rejected inputs; quarantine.parquet contains the reasons."""
    class_names: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if len(self.class_names) not in (0, self.spec.classes):
            raise ValueError(f"{len(self.class_names)} class names, {self.spec.classes} classes")
        return self

    def of_split(self, split: Split) -> tuple[ShardEntry, ...]:
        """The shards of a split, in order."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def rows(self, split: Split) -> int:
        """Number of samples in a split."""
        return sum(shard.rows for shard in self.of_split(split))


ManifestT = TypeVar("ManifestT", bound=Manifest)

MANIFEST_NAMES = {
    "dataset": "dataset.json",
    "model": "model.json",
    "scores": "scores.json",
    "evaluation": "evaluation.json",
    "features": "features.json",
    "report": "report.json",
    "decision": "decision.json",
}
"""File name of each kind's manifest."""


def load_manifest(schema: type[ManifestT], root: str, kind: str) -> ManifestT | None:
    """The manifest in a folder, or None if there is none. DataError if it is invalid or was changed."""
    url = storage.join(root, MANIFEST_NAMES[kind])
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        return None
    try:
        manifest = schema.model_validate(json.loads(data))
    except (ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{url} is not a valid {kind} manifest ({reason}); remove its folder and run the stage again"
        ) from None
    if not manifest.is_whole():
        raise DataError(f"{url} does not match its own digest: it was changed after it was written")
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


def check_done(manifest: ManifestT | None, root: str, kind: str, expected: str) -> ManifestT | None:
    """As :func:`find_done`, for a manifest that was read before (None: the folder has none)."""
    present = manifest.fingerprint if manifest else _claimed(root)
    if present is not None and present != expected:
        state = "contains" if manifest else "is being filled with"
        metadata = manifest.metadata if manifest else {}
        grown = "; if the source has new data, run genmod retrain" if "source" in metadata else ""
        article = {"scores": "", "evaluation": "an "}.get(kind, "a ")
        section = "score" if kind == "scores" else "sample" if "sample" in metadata else None
        folder = f"another folder with --set {section}.output=NAME, " if section else ""
        raise ConfigError(
            f"{root} {state} {article}{kind} made from other inputs or settings "
            f"(fingerprint {present[:12]}, this recipe's is {expected[:12]}); "
            f"choose {folder}another root with --set root=URL, or remove that folder{grown}"
        )
    return manifest


_CLAIM = "claim.json"


def claim(root: str, fingerprint: str) -> None:
    """Reserve a folder before its first file is written. ConfigError if it is reserved for other work."""
    storage.create(storage.join(root, _CLAIM), json.dumps({"fingerprint": fingerprint}).encode())
    if _claimed(root) != fingerprint:
        raise ConfigError(
            f"{root} was just claimed by another recipe; choose another root with --set root=URL"
        )


def release_claim(root: str) -> None:
    """Release a folder whose work cannot be finished, and remove the receipts of that work."""
    storage.remove(storage.join(root, "receipts"))
    storage.remove(storage.join(root, _CLAIM))


def is_claimed(names: Collection[str]) -> bool:
    """Whether a folder with these files is claimed and has no manifest: in progress, or lost."""
    return _CLAIM in names and not any(name in names for name in MANIFEST_NAMES.values())


def _claimed(root: str) -> str | None:
    try:
        return str(json.loads(storage.read_bytes(storage.join(root, _CLAIM)))["fingerprint"])
    except FileNotFoundError:
        return None


def publish(root: str, manifest: ManifestT) -> ManifestT:
    """Seal and publish a manifest, as the last write of a stage.

    Returns:
        The published manifest: this one, or that of another writer who was first.

    Raises:
        ConfigError: the other writer's manifest has another fingerprint.
    """
    sealed = manifest.sealed()
    data = json.dumps(sealed.model_dump(mode="json"), indent=1).encode() + b"\n"
    if storage.create(storage.join(root, MANIFEST_NAMES[manifest.kind]), data):
        return sealed
    first = find_done(type(manifest), root, manifest.kind, manifest.fingerprint)
    assert first is not None
    return first


def write_file(root: str, path: str, data: bytes | memoryview) -> FileEntry:
    """Write one file of a stage below its root, and return its entry for the manifest."""
    storage.write_bytes(storage.join(root, path), data)
    return FileEntry(path=path, size_bytes=len(data), sha256=storage.sha256(data))


def read_checked(root: str, entry: FileEntry, hint: str) -> bytes:
    """The bytes of a listed file. DataError, ending in ``hint``, if it is missing or was changed."""
    url = storage.join(root, entry.path)
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        raise DataError(f"{url} is missing, but its manifest lists it; {hint}") from None
    if storage.sha256(data) != entry.sha256:
        raise DataError(f"{url} does not match its digest: it was changed; {hint}")
    return data


def read_listed(root: str, manifest: Manifest, path: str, hint: str) -> bytes:
    """As :func:`read_checked`, for the file with this path. DataError if the manifest does not list it."""
    entry = next((entry for entry in manifest.files if entry.path == path), None)
    if entry is None:
        raise DataError(f"{root}: its manifest lists no {path}; {hint}")
    return read_checked(root, entry, hint)


def find_problems(root: str, files: Sequence[FileEntry]) -> list[str]:
    """One line for each listed file that is missing, unreadable, or of another size or digest."""
    problems: list[str] = []
    for entry in files:
        url = storage.join(root, entry.path)
        try:
            size_bytes = storage.size_bytes(url)
            if size_bytes != entry.size_bytes:
                problems.append(f"{url}: {size_bytes} bytes, expected {entry.size_bytes}")
            elif storage.sha256_of(url) != entry.sha256:
                problems.append(f"{url}: its sha256 is not {entry.sha256[:12]}…")
        except FileNotFoundError:
            problems.append(f"{url}: missing")
        except OSError as error:
            problems.append(f"{url}: cannot be read ({error.strerror or error})")
    return problems
