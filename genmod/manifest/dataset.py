"""The manifest of a dataset: plain WebDataset tars, each with an index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator

from genmod.budget import BUDGET
from genmod.config import Config
from genmod.errors import DataError, sanitize
from genmod.manifest.class_match import Classes
from genmod.manifest.folders import SharedFolder, shared_folder
from genmod.manifest.schema import FileEntry, Manifest
from genmod.manifest.statistics import RowStats, Split, network_stats
from genmod.storage import join_below

_MAX_FOLDERS = 10_000
_REASON_CHARS = 1000
_MAX_CLASS_NAME = 1024


def _class_name(name: str) -> str:
    if not name.isprintable() or len(name) > _MAX_CLASS_NAME:
        raise ValueError(
            f"the class name {sanitize(name[:40])!r} has control characters, or more than {_MAX_CLASS_NAME}"
        )
    return name


def check_class_names(names: Sequence[str], where: str) -> None:
    """DataError for a name that is not printable, or too long; ``where`` is the source of the names."""
    try:
        for name in names:
            _class_name(name)
    except ValueError as error:
        raise DataError(f"{where}: {error}; rename the class") from None


ClassName = Annotated[str, AfterValidator(_class_name)]
"""Name of a class: printable, since it is shown."""


class ImageSpec(Config):
    """Shape and pixel values of a dataset's images, and so of a model's samples."""

    channels: Literal[1, 3]
    height: int = Field(gt=0, le=BUDGET.image_side)
    width: int = Field(gt=0, le=BUDGET.image_side)
    classes: int = Field(0, ge=0, le=BUDGET.classes)
    """Number of labels; 0 without labels."""
    levels: Literal[2, 256] = 256
    """Number of pixel values: 256, or 2 for binary data (stored as 0 and 255)."""
    draw_seed: int | None = Field(default=None, exclude_if=lambda seed: seed is None)
    """Seed of binary data that is stored as grey levels: each pixel is on with probability grey / 255. Each
    row has one draw with this seed; training draws again at every use. See :mod:`genmod.data.format.binary`.
    """

    @model_validator(mode="after")
    def _check_pixels(self) -> Self:
        if self.height * self.width > BUDGET.pixels:
            raise ValueError(
                f"{self.height}x{self.width} pixels, more than the limit of {BUDGET.pixels:,}"
            )
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image, (C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def dims(self) -> int:
        """D = C H W, the divisor of bits per dimension."""
        return self.channels * self.height * self.width

    def same_images(self, other: ImageSpec) -> bool:
        """Whether images of both have the same shape and values, and both have labels or none."""
        classes = min(self.classes, 1), min(other.classes, 1)
        ours, theirs = (
            spec.model_copy(update={"classes": count})
            for spec, count in zip((self, other), classes, strict=True)
        )
        return ours == theirs

    def __str__(self) -> str:
        labels = f"{self.classes} classes" if self.classes else "no labels"
        levels = f"{self.levels} levels"
        if self.draw_seed is not None:
            levels += f" drawn from greys with seed {self.draw_seed}"
        return f"{self.channels}x{self.height}x{self.width}, {levels}, {labels}"


class ShardEntry(Config):
    """One tar of a dataset with its index."""

    split: Split
    rows: int = Field(ge=1, le=BUDGET.shard_rows)
    tar: FileEntry
    index: FileEntry
    folder: int = Field(default=0, ge=0, exclude_if=lambda folder: folder == 0)
    """0: the manifest's own folder; N: the N-th of its ``folders``."""
    table: FileEntry | None = Field(default=None, exclude_if=lambda table: table is None)
    """The same images as Parquet; see :mod:`genmod.data.format.image_table`."""

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """All files of the shard."""
        return tuple(file for file in (self.tar, self.index, self.table) if file is not None)


@dataclass(frozen=True)
class StoredShard:
    """A shard and the folder that contains it: in memory only, since manifests contain no URLs."""

    entry: ShardEntry
    folder: str
    """URL of the folder."""

    @property
    def rows(self) -> int:
        """Number of samples of the shard."""
        return self.entry.rows

    @property
    def tar_url(self) -> str:
        """URL of the tar."""
        return join_below(self.folder, self.entry.tar.path)

    @property
    def index_url(self) -> str:
        """URL of the index."""
        return join_below(self.folder, self.entry.index.path)


class DatasetManifest(Manifest):
    """A dataset, real or synthetic: plain WebDataset tars, each with an index."""

    kind: str = "dataset"
    spec: ImageSpec
    shards: tuple[ShardEntry, ...] = Field(fail_fast=True)
    folders: tuple[SharedFolder, ...] = Field(
        default=(), max_length=_MAX_FOLDERS, exclude_if=lambda folders: not folders
    )
    """Folders of earlier versions whose shards this one shares, relative to its own."""
    quarantined: int = Field(default=0, ge=0, le=BUDGET.rows)
    """Number of rejected inputs; quarantine.parquet contains the reasons."""
    class_names: tuple[ClassName, ...] = Field(default=(), fail_fast=True)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if len(self.class_names) not in (0, self.spec.classes):
            raise ValueError(f"{len(self.class_names)} class names, {self.spec.classes} classes")
        return self

    @model_validator(mode="after")
    def _check_shards(self) -> Self:
        rows = sum(shard.rows for shard in self.shards)
        if rows > BUDGET.rows:
            raise ValueError(f"{rows:,} rows, more than the limit of {BUDGET.rows:,}")
        if max((shard.folder for shard in self.shards), default=0) > len(self.folders):
            raise ValueError("a shard is in a folder that the manifest does not name")
        # Each file once. Keys are unique, so equal tars are one tar under two names.
        paths = [f"{shard.folder}/{entry.path}" for shard in self.shards for entry in shard.files]
        for names in (paths, [shard.tar.sha256 for shard in self.shards], self.folders):
            if len(set(names)) != len(names):
                ((name, _),) = Counter(names).most_common(1)
                raise ValueError(f"{name.removeprefix('0/')} occurs twice")
        return self

    @model_validator(mode="after")
    def _check_statistics(self) -> Self:
        version = self.metadata.get("version", 1)
        if not isinstance(version, int) or not 1 <= version < 10**9:
            raise ValueError("metadata.version is not the number of a version")
        repeat = self.metadata.get("repeat", 0)
        if not isinstance(repeat, int) or not 0 <= repeat < 10**9:
            raise ValueError("metadata.repeat is not a number of repeats")
        reason = self.metadata.get("reason", "")
        if not isinstance(reason, str) or len(reason) > _REASON_CHARS:
            raise ValueError("metadata.reason is not a reason")
        if "splits" not in self.metadata:
            return self
        try:
            splits = _SPLITS.validate_python(self.metadata["splits"])
        except ValidationError as error:
            problem: Any = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise ValueError(f"metadata.splits.{where}: {problem['msg']}") from None
        spec = self.spec
        for split, stats in splits.items():
            rows, pixels = self.rows(split), spec.height * spec.width
            if problem := stats.problem(rows, spec.channels, pixels, spec.classes):
                raise ValueError(f"metadata.splits.{split}: {problem}")
        if splits and (missing := {shard.split for shard in self.shards} - set(splits)):
            raise ValueError(f"metadata.splits has no {missing.pop()}")
        if "stats" in self.metadata or "train" in splits:
            train = splits.get("train")
            expected = network_stats(train) if train and train.rows else None
            if self.metadata.get("stats") != expected:
                raise ValueError("metadata.stats is not the mean and std of metadata.splits.train")
        return self

    @property
    def repeat(self) -> int:
        """How often in a row the same rows are a version again; changes the random numbers of training."""
        return int(self.metadata.get("repeat", 0))

    @property
    def reason(self) -> str:
        """Why the version was made, for people; empty if for new rows alone, or as the first one."""
        return str(self.metadata.get("reason", ""))

    @property
    def replaces(self) -> str | None:
        """Digest of the version that this one was made in place of, sharing nothing; None if of none."""
        return self.parents.get("replaces")

    def of_split(self, split: Split) -> tuple[ShardEntry, ...]:
        """The shards of a split, in order."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def rows(self, split: Split) -> int:
        """Number of samples in a split."""
        return sum(shard.rows for shard in self.of_split(split))

    def stored(self, root: str, split: Split | None = None) -> tuple[StoredShard, ...]:
        """The shards of a split, or all, with the folders that contain them.

        Args:
            root: URL of the folder with this manifest.
            split: the split; None for all shards.

        Raises:
            DataError: ``folders`` leads out of the store.
        """
        folders = (root, *self.shared_folders(root))
        shards = self.shards if split is None else self.of_split(split)
        return tuple(StoredShard(shard, folders[shard.folder]) for shard in shards)

    def shared_folders(self, root: str) -> tuple[str, ...]:
        """URLs of the folders that the manifest in ``root`` names. DataError for one out of the store."""
        return tuple(shared_folder(root, folder) for folder in self.folders)

    def empty_classes(self, split: Split) -> tuple[int, ...]:
        """Numbers of the classes without rows in a split; none if the manifest does not count them."""
        splits: Any = self.metadata.get("splits") or {}
        if split not in splits:
            return ()
        rows_K = _SPLITS.validate_python(splits)[split].rows_K
        return tuple(number for number, rows in enumerate(rows_K) if not rows)

    def classes(self, owner: str) -> Classes:
        """The dataset's classes, to match them with others; ``owner`` names it in errors."""
        return Classes(owner, self.spec.classes, self.class_names)

    def classes_with_rows(self, split: Split) -> set[int]:
        """Numbers of the classes that have rows in a split; all if the manifest does not count them."""
        return set(range(self.spec.classes)) - set(self.empty_classes(split))

    def row_stats(self, root: str) -> dict[Split, RowStats]:
        """Statistics of the rows of each split.

        Args:
            root: URL of the folder with this manifest, for the error.

        Raises:
            DataError: the manifest has none.
        """
        try:
            return _SPLITS.validate_python(self.metadata["splits"])
        except (KeyError, ValidationError):
            raise DataError(
                f"{root}: its manifest has no statistics of its rows (metadata.splits); "
                "restore or re-create the dataset"
            ) from None


_SPLITS: TypeAdapter[dict[Split, RowStats]] = TypeAdapter(dict[Split, RowStats])
