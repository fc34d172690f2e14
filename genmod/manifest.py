"""Done means: its manifest is there.

A stage writes its files, then its manifest, last, by a create-if-absent write. The manifest names every
file with size and digest and carries the fingerprint of what the stage was made from. Running a finished
stage again finds the manifest and does nothing; a manifest with another fingerprint belongs to somebody
else's work and is never overwritten.
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
"""Version of everything that is written below a root. Readers refuse a newer one."""

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class FileEntry(Config):
    """One file: where it is (relative to the manifest, or absolute), how long, and its digest."""

    path: str
    size_bytes: int
    sha256: str


class ImageSpec(Config):
    """What an image of a dataset is, and so what a model of it makes."""

    channels: Literal[1, 3]
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    classes: int = Field(0, ge=0)
    """Number of labels, 0 if there are none."""
    levels: Literal[2, 256] = 256
    """Values a pixel takes: 256, or 2 for binary data (stored as pixels 0 and 255)."""
    draw_seed: int | None = Field(default=None, exclude_if=lambda seed: seed is None)
    """Of binary data whose shards hold greys: a pixel is on with the probability that its grey says. The seed
    of each row's one draw; training draws anew whenever a row comes. See :mod:`genmod.data.format.binary`."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def dims(self) -> int:
        """D = C H W, what bits per dimension divide by."""
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
    """What a stage made. ``digest`` is over all other fields."""

    kind: str
    """dataset, model, scores, evaluation, report or decision."""
    format: int = FORMAT
    fingerprint: str
    """Of the configuration and the inputs' digests: what this was made from."""
    parents: dict[str, str] = {}
    """Name of an input -> its digest."""
    files: tuple[FileEntry, ...] = ()
    metadata: dict[str, Any] = {}
    """JSON values that readers of this kind need, e.g. metrics with their labels."""
    digest: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.format > FORMAT:
            raise ValueError(f"format {self.format} is newer than this genmod reads ({FORMAT})")
        return self

    def sealed(self) -> Self:
        """The same with its digest filled in."""
        return self.model_copy(update={"digest": self._digest()})

    def _digest(self) -> str:
        return fingerprint(self.model_dump(mode="json", exclude={"digest"}))

    def is_whole(self) -> bool:
        """Whether the digest fits the fields."""
        return self.digest == self._digest()


class DatasetManifest(Manifest):
    """A dataset, real or synthetic: plain WebDataset tars, each with an index."""

    kind: str = "dataset"
    spec: ImageSpec
    shards: tuple[ShardEntry, ...]
    quarantined: int = 0
    """Inputs that were refused; quarantine.parquet says why."""
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
        """How many samples a split has."""
        return sum(shard.rows for shard in self.of_split(split))


ManifestT = TypeVar("ManifestT", bound=Manifest)

NAMES = {
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
    """The manifest in a folder, or None if there is none.

    Raises:
        DataError: it is there but broken.
    """
    url = storage.join(root, NAMES[kind])
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        return None
    try:
        manifest = schema.model_validate(json.loads(data))
    except (ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{url} is not a {kind} manifest ({reason}); make it again") from None
    if not manifest.is_whole():
        raise DataError(f"{url} does not fit its own digest: it was changed after it was written")
    return manifest


def require(schema: type[ManifestT], root: str, kind: str, made_by: str) -> ManifestT:
    """The manifest in a folder; its absence is a ConfigError that names the stage which makes it."""
    manifest = load_manifest(schema, root, kind)
    if manifest is None:
        raise missing_manifest(root, kind, made_by)
    return manifest


def missing_manifest(root: str, kind: str, made_by: str) -> ConfigError:
    """The error for a folder without a manifest; ``made_by`` is the command that writes one."""
    return ConfigError(f"no {kind} at {root}; make it first: genmod {made_by}")


def find_done(schema: type[ManifestT], root: str, kind: str, wanted: str) -> ManifestT | None:
    """The manifest if this very work is done, None if it is still to do.

    Raises:
        ConfigError: the folder holds work with another fingerprint, done or under way.
    """
    return check_done(load_manifest(schema, root, kind), root, kind, wanted)


def check_done(manifest: ManifestT | None, root: str, kind: str, wanted: str) -> ManifestT | None:
    """As :func:`find_done`, of a manifest that was read already."""
    found = manifest.fingerprint if manifest else _claimed(root)
    if found is not None and found != wanted:
        state = "holds" if manifest else "is being filled with"
        real = manifest is not None and "source" in manifest.metadata
        grown = "; if its source has grown: genmod retrain" if real else ""
        article = {"scores": "", "evaluation": "an "}.get(kind, "a ")
        raise ConfigError(
            f"{root} {state} {article}{kind} made from something else "
            f"(fingerprint {found[:12]}, this recipe's is {wanted[:12]}); "
            f"give another root with --set root=URL, or remove that folder{grown}"
        )
    return manifest


_CLAIM = "claim.json"


def claim(root: str, wanted: str) -> None:
    """Say whose work a folder will hold, before the first file of it; checked by :func:`find_done`."""
    storage.create(storage.join(root, _CLAIM), json.dumps({"fingerprint": wanted}).encode())
    found = _claimed(root)
    if found != wanted:
        raise ConfigError(f"{root} was just claimed by another recipe; give another root")


def release_claim(root: str) -> None:
    """Let a folder go whose work cannot be done, and with it the receipts of that work."""
    storage.remove(storage.join(root, "receipts"))
    storage.remove(storage.join(root, _CLAIM))


def is_claimed(names: Collection[str]) -> bool:
    """Whether a folder with such files is being filled, or was and has lost its manifest."""
    return _CLAIM in names and not any(name in names for name in NAMES.values())


def _claimed(root: str) -> str | None:
    try:
        return str(json.loads(storage.read_bytes(storage.join(root, _CLAIM)))["fingerprint"])
    except FileNotFoundError:
        return None


def publish(root: str, manifest: ManifestT) -> ManifestT:
    """Seal and publish, the last write of a stage. If another writer was first, theirs is returned.

    Raises:
        ConfigError: theirs was made from something else.
    """
    sealed = manifest.sealed()
    data = json.dumps(sealed.model_dump(mode="json"), indent=1).encode() + b"\n"
    if storage.create(storage.join(root, NAMES[manifest.kind]), data):
        return sealed
    theirs = find_done(type(manifest), root, manifest.kind, manifest.fingerprint)
    assert theirs is not None
    return theirs


def write_file(root: str, path: str, data: bytes | memoryview) -> FileEntry:
    """Write one file of a stage below its root and say what it is."""
    storage.write_bytes(storage.join(root, path), data)
    return FileEntry(path=path, size_bytes=len(data), sha256=storage.sha256(data))


def find_problems(root: str, files: Sequence[FileEntry]) -> list[str]:
    """What is wrong with files that a manifest names: missing, of another size, of another digest."""
    found: list[str] = []
    for entry in files:
        url = storage.join(root, entry.path)
        try:
            size_bytes = storage.size_bytes(url)
            if size_bytes != entry.size_bytes:
                found.append(f"{url}: {size_bytes} bytes, wanted {entry.size_bytes}")
            elif storage.sha256_of(url) != entry.sha256:
                found.append(f"{url}: its sha256 is not {entry.sha256[:12]}…")
        except FileNotFoundError:
            found.append(f"{url}: missing")
        except OSError as error:
            found.append(f"{url}: cannot be read ({error.strerror or error})")
    return found
