"""Data sources: the recipe's ``data`` section, and the interface of all kinds of source.

A source is identified by a text ``KIND:WHERE``, from which any process can open it. The process that computes
the plan lists it once. Each entry contains a small JSON value that locates its image, so that tasks fetch
images without listing the source again.
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
    """Shares of the rows to hold out. A hash of the key selects the rows, independent of the seed."""

    val: float = Field(default=0.1, ge=0, lt=1)
    """Share of the rows for validation."""
    test: float = Field(default=0.1, ge=0, lt=1)
    """Share of the rows for evaluation."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(f"val + test is {self.val + self.test:g}, nothing is left to train on")
        return self


_Side = Annotated[int, Field(gt=0, le=8192)]


class DataConfig(Config):
    """The recipe's ``data``: the source, the format of the images, the splits and the shards."""

    source: str
    """``builtin:digits``, ``builtin:mnist5k``, ``idx:FOLDER``, ``folder:FOLDER``, ``npz:FILE``,
    ``webdataset:PATTERN``, ``parquet:FILES``."""
    image_size: _Side | tuple[_Side, _Side] | None = None
    """Side in pixels, or (height, width). Default: the size of the source's first readable image."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for RGB. Default: as the source's first readable image."""
    levels: Literal[2, 256] = 256
    """256, or 2 for binary pixels 0 and 255: thresholded at 128, or drawn (``draw_seed``)."""
    draw_seed: int | None = Field(default=None, exclude_if=lambda seed: seed is None)
    """With 2 levels: store greys, and draw each pixel as 255 with probability grey / 255. Each row has one
    fixed draw with this seed, for evaluation; training draws again at each visit of a row."""
    resize: Resize = "none"
    """Treatment of images of another size: ``none`` rejects them, ``fit`` stretches them, ``crop`` scales
    them to cover the target and crops the centre, ``pad`` scales them to fit and pads with black."""
    labels: bool | Literal["auto"] = "auto"
    """``true`` requires labels, ``false`` ignores them, ``auto`` uses them if the source has them."""
    classes: int | None = Field(default=None, gt=0)
    """Number of classes. Default: as many as the source has."""
    shard_rows: int | None = Field(default=None, gt=0)
    """Rows per shard. Default: 2048, or fewer for large images, to stay below 32 MiB of pixels."""
    splits: Splits = Splits()
    max_quarantined: float = Field(default=0.01, ge=0, le=1)
    """Share of the inputs that may be rejected; the stage fails if it is exceeded."""
    append: bool = False
    """``genmod shard`` writes the dataset's next version: the newest one plus new rows of the source. Does
    not affect the result."""
    workers: int | None = Field(default=None, gt=0)
    """Shards to write in parallel; by default one per CPU. Does not affect the result."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.draw_seed is not None and self.levels != 2:
            raise ValueError("draw_seed draws binary pixels; set levels to 2, or leave it out")
        return self

    def result(self) -> dict[str, Any]:
        """Fields that determine the bytes, for the fingerprint; the source is represented by its content."""
        return self.model_dump(
            mode="json", exclude={"source", "max_quarantined", "append", "workers"}
        )


Image = bytes | NDArray[np.uint8] | Rejected
"""A fetched image: encoded bytes, pixels (H, W) or (H, W, C), or the reason why there is none."""

Ref = Any
"""A small JSON value that locates a row; its form depends on the kind of source."""


NO_LABEL, BAD_LABEL = -1, -2
"""Labels of a row without a label, and of a row whose label is not a class number."""


class Entry(NamedTuple):
    """One input of a source, without its image."""

    name: str
    """Name of the input; it does not change when the source grows."""
    ref: Ref
    label: int | str = NO_LABEL
    """Number or name of the class, or ``NO_LABEL``, ``BAD_LABEL``."""
    reason: str | None = None
    """Why the source rejects the input; None if it does not."""


@dataclass
class Scan:
    """Properties of a source, complete after all its entries have been iterated."""

    fingerprint: str = ""
    """Fingerprint of the content: of digests, or of names and sizes."""
    size_bytes: int = 0
    """Size of all images in the source, for estimates."""
    shape: tuple[int, int, int] | None = None
    """(C, H, W) if the source declares one shape for all images."""
    max_fetch_bytes: int = 0
    """Maximum memory that a task needs to fetch one image."""


@dataclass(frozen=True)
class Listing:
    """All rows of a small source in memory, without the images."""

    names: list[str]
    refs: list[Ref]
    labels_N: NDArray[np.int64] | None
    """Negative for rows without a label. None: the source is not labelled."""
    fingerprint: str
    size_bytes: int
    class_names: tuple[str, ...] = ()
    shape: tuple[int, int, int] | None = None
    rejected: tuple[tuple[str, str], ...] = ()
    """(name, reason) of the rejected inputs."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def classes(self) -> int:
        """Number of classes according to the labels; 0 without labels."""
        if self.labels_N is None:
            return 0
        return len(self.class_names) or int(self.labels_N.max(initial=-1)) + 1


class Source(ABC):
    """Interface of a kind of source: lists inputs and fetches images."""

    kind: ClassVar[str]
    random_access: ClassVar[bool]
    """Whether fetching rows in any order is as cheap as in the listed order."""

    def __init__(self, where: str) -> None:
        self.where = where

    @property
    def text(self) -> str:
        """``KIND:WHERE``, from which ``open_source`` creates the same source in any process."""
        return f"{self.kind}:{self.where}"

    @abstractmethod
    def entries(self, scan: Scan) -> Iterator[Entry]:
        """Iterate over all inputs, always in the same order, and fill ``scan`` on the way.

        Raises:
            DataError: the source does not exist or is empty.
        """

    @abstractmethod
    def fetch(self, refs: Sequence[Ref], fingerprint: str) -> Iterator[Image]:
        """Fetch the images of given rows, in the order of ``refs``.

        Args:
            refs: ``ref`` of the entries.
            fingerprint: fingerprint of the scan.

        Raises:
            DataError: the source has changed since it was listed.
        """

    def listing(self) -> Listing:
        """List all entries at once, for small sources."""
        scan = Scan()
        rows: list[Entry] = []
        rejected: list[tuple[str, str]] = []
        for entry in self.entries(scan):
            if entry.reason is None:
                rows.append(entry)
            else:
                rejected.append((entry.name, entry.reason))
        # Number named classes in alphabetical order.
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
    """Make a name encodable as UTF-8: other bytes become backslash escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def pixels_of(image: Image) -> NDArray[np.uint8]:
    """Decode a fetched image to uint8 pixels (H, W) or (H, W, C). Raises Rejected."""
    if isinstance(image, Rejected):
        raise image
    return decode_foreign(image) if isinstance(image, bytes) else image
