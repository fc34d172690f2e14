"""Where data comes from: the recipe's ``data`` section, and the kinds of source behind one interface.

A source is named by one text, ``KIND:WHERE``, from which any process can open it again. It is listed once,
by the process that makes the plan; an entry says what a task needs to fetch its image (a small JSON value),
so that no task lists again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from genmod.config import Config
from genmod.data.format.codecs import Rejected, Resize, decode_foreign


class Splits(Config):
    """Shares of the rows that are held out. Which rows: by a hash of the key, whatever the seed."""

    val: float = Field(default=0.1, ge=0, lt=1)
    """Share of the rows for validation."""
    test: float = Field(default=0.1, ge=0, lt=1)
    """Share of the rows for evaluation."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(f"val + test is {self.val + self.test:g}, nothing is left to train on")
        return self


Side = Annotated[int, Field(gt=0, le=8192)]


class DataConfig(Config):
    """The recipe's ``data``: a source, what its images are made into, and how rows are divided."""

    source: str
    """``builtin:digits``, ``builtin:mnist5k``, ``idx:FOLDER``, ``folder:FOLDER``, ``npz:FILE``,
    ``webdataset:PATTERN``, ``parquet:FILES``."""
    image_size: Side | tuple[Side, Side] | None = None
    """Pixels: one number, or height and width. Not given: as the source's first readable image."""
    channels: Literal[1, 3] | None = None
    """1 grey, 3 RGB. Not given: as the source's first readable image."""
    levels: Literal[2, 256] = 256
    """2 makes every pixel 0 or 255, with the border at 128 unless they are drawn."""
    draw_seed: int | None = Field(default=None, exclude_if=lambda seed: seed is None)
    """With 2 levels: keep the greys, and draw each pixel with the probability that its grey says: every row
    of every split once with this seed, and anew for training whenever a row comes."""
    resize: Resize = "none"
    """For images of another size: ``none`` refuses them, ``fit`` stretches, ``crop`` scales to cover and
    cuts the middle out, ``pad`` scales to fit in and fills up with black."""
    labels: bool | Literal["auto"] = "auto"
    """``true`` wants them, ``false`` leaves them out, ``auto`` takes them where the source has them."""
    classes: int | None = Field(default=None, gt=0)
    """How many there must be. Not given: as many as the source has."""
    shard_rows: int | None = Field(default=None, gt=0)
    """Rows of one tar. Not given: 2048, or fewer where images are so large that they pass 32 MiB."""
    splits: Splits = Splits()
    max_quarantined: float = Field(default=0.01, ge=0, le=1)
    """Share of the inputs that may be refused before the stage gives up."""
    append: bool = False
    """``genmod shard`` makes the dataset's next version, of what the source has and the newest one lacks.
    Not part of the result."""
    workers: int | None = Field(default=None, gt=0)
    """Shards made at the same time; as many as there are CPUs if not given. Not part of the result."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.draw_seed is not None and self.levels != 2:
            raise ValueError("draw_seed draws binary pixels; set levels to 2, or leave it out")
        return self

    def result(self) -> dict[str, Any]:
        """The fields that the bytes depend on, for the fingerprint; the source counts by its content."""
        return self.model_dump(
            mode="json", exclude={"source", "max_quarantined", "append", "workers"}
        )


Image = bytes | NDArray[np.uint8] | Rejected
"""What a source gives for a row: an encoded image, pixels (H, W) or (H, W, C), or why there is none."""

Ref = Any
"""A small JSON value that says where a row is; each kind of source has its own."""


NO_LABEL, BAD_LABEL = -1, -2
"""Labels of a row that has none, and of one whose label is not a number of a class."""


class Entry(NamedTuple):
    """One input of a source, without its image."""

    name: str
    """What the source calls it; unchanged when the source grows."""
    ref: Ref
    label: int | str = NO_LABEL
    """Number of its class, or its name, or one of the above."""
    fault: str | None = None
    """Why it cannot be a row."""


@dataclass
class Scan:
    """What a source tells of itself; whole when all its entries have been taken."""

    fingerprint: str = ""
    """Of the content: digests, or names and sizes."""
    size_bytes: int = 0
    """Of the images as they are, for estimates."""
    shape: tuple[int, int, int] | None = None
    """(C, H, W) if all images are declared to have it."""
    max_fetch_bytes: int = 0
    """The most that a task has to hold to fetch one image."""


@dataclass(frozen=True)
class Listing:
    """Every row of a small source in memory, without the images."""

    names: list[str]
    refs: list[Ref]
    labels_N: NDArray[np.int64] | None
    """Negative where a row has none. None: the source is not labelled."""
    fingerprint: str
    size_bytes: int
    class_names: tuple[str, ...] = ()
    shape: tuple[int, int, int] | None = None
    rejected: tuple[tuple[str, str], ...] = ()
    """(name, reason) of what was found but cannot be a row."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def classes(self) -> int:
        """How many classes the labels tell of, 0 without labels."""
        if self.labels_N is None:
            return 0
        return len(self.class_names) or int(self.labels_N.max(initial=-1)) + 1


class Source(ABC):
    """Rows of images, some with labels."""

    kind: ClassVar[str]
    random_access: ClassVar[bool]
    """Whether rows are as cheap to fetch in any order as in the listed one."""

    def __init__(self, where: str) -> None:
        self.where = where

    @property
    def text(self) -> str:
        """``KIND:WHERE``; :func:`open_source` makes the same source of it anywhere."""
        return f"{self.kind}:{self.where}"

    @abstractmethod
    def entries(self, scan: Scan) -> Iterator[Entry]:
        """Every input, always in the same order, one by one; ``scan`` is filled on the way.

        Raises:
            DataError: the source is not there or holds nothing.
        """

    @abstractmethod
    def fetch(self, refs: Sequence[Ref], fingerprint: str) -> Iterator[Image]:
        """The images of some rows, in the order of ``refs``.

        Args:
            refs: from the entries.
            fingerprint: the scan's.

        Raises:
            DataError: the source is no longer what was listed.
        """

    def listing(self) -> Listing:
        """All entries at once, for sources that are known to be small."""
        scan = Scan()
        rows: list[Entry] = []
        rejected: list[tuple[str, str]] = []
        for entry in self.entries(scan):
            if entry.fault is None:
                rows.append(entry)
            else:
                rejected.append((entry.name, entry.fault))
        class_names = tuple(sorted({row.label for row in rows if isinstance(row.label, str)}))
        number = {name: label for label, name in enumerate(class_names)}
        labels = [number[r.label] if isinstance(r.label, str) else r.label for r in rows]
        labels_N = np.array(labels, dtype=np.int64)
        return Listing(
            names=[row.name for row in rows],
            refs=[row.ref for row in rows],
            labels_N=labels_N if (labels_N >= 0).any() else None,
            fingerprint=scan.fingerprint,
            size_bytes=scan.size_bytes,
            class_names=class_names,
            shape=scan.shape,
            rejected=tuple(rejected),
        )


def readable_name(name: str) -> str:
    """A name of the source as text that any file can hold: bytes that are not UTF-8 are written out."""
    return name.encode("utf-8", "backslashreplace").decode()


def pixels_of(image: Image) -> NDArray[np.uint8]:
    """What a source gave, as pixels (H, W) or (H, W, C). Raises Rejected."""
    if isinstance(image, Rejected):
        raise image
    return decode_foreign(image) if isinstance(image, bytes) else image
