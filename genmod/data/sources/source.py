"""Interface of all kinds of source.

A source is identified by a text ``KIND:WHERE``, from which any process can open it. The process that computes
the plan lists it once. Each entry contains a small JSON value that locates its image, so that tasks fetch
images without listing the source again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genmod.budget import BUDGET
from genmod.data.format.foreign import Rejected, Resize, decode_foreign, to_spec
from genmod.data.sources.census import Census
from genmod.data.sources.class_names import in_class_order
from genmod.data.sources.config import NO_OPTIONS, SourceOptions
from genmod.manifest import ImageSpec, Split

Image = bytes | NDArray[np.uint8] | Rejected
"""A fetched image: encoded bytes, pixels (H, W) or (H, W, C), or the reason why there is none."""

Ref = Any
"""A small JSON value that locates a row; its form depends on the kind of source."""


NO_LABEL, BAD_LABEL, FRACTION, SEVERAL_LABELS, UNNAMED, BAD_TEXT = -1, -2, -3, -4, -5, -6
"""Numbers in place of the label of a row that has none, or has one that is of no class."""

LABEL_REASONS: Mapping[int, str] = {
    NO_LABEL: "has no label",
    BAD_LABEL: "its label is not a class number",
    FRACTION: "its label is a number with a fraction",
    SEVERAL_LABELS: "has several labels",
    UNNAMED: "its label has no name in the metadata of its file",
    BAD_TEXT: f"its label has more than {BUDGET.name_chars} characters, or is not Unicode",
}
"""Why a row with one of these numbers is rejected, where labels are used."""


class Entry(NamedTuple):
    """One input of a source, without its image."""

    name: str
    """Name of the input; it does not change when the source grows."""
    ref: Ref
    label: int | str = NO_LABEL
    """Number or name of the class, or a key of ``LABEL_REASONS``."""
    reason: str | None = None
    """Why the source rejects the input; None if it does not."""
    split: Split | None = None
    """Split that the source declares; None if it declares none."""
    content: str | None = None
    """Text that changes with the bytes and the label of this input; None if they are not known row by row."""


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
    """Maximum memory that a task needs to fetch images, before they are decoded."""
    class_names: tuple[str, ...] = ()
    """Names of all classes in the order that the source declares, with those of classes without rows.
    Empty: the source declares no order, so that named classes are in the order of their names."""
    census: Census = field(default_factory=Census)
    """What was passed over and decided."""
    identify: bool = True
    """Whether the fingerprint is needed. If not, files are listed without reading their content, and their
    sizes may be missing."""


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
    block_fields: ClassVar[int] = 0
    """Number of leading values of a ref that name a block which is read as a whole; 0: no blocks."""

    def __init__(self, where: str, options: SourceOptions = NO_OPTIONS) -> None:
        self.where, self.options = where, options

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

    def content_digest(self, ref: Ref) -> str | None:
        """Hexadecimal digest of a row's file; None if the listing has not read it."""
        return None

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
        # Number named classes in the declared order, else in that of their names.
        named = {row.label for row in rows if isinstance(row.label, str)}
        class_names = scan.class_names or in_class_order(named)
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
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def pixels_of(image: Image, exactly: ImageSpec | None = None) -> NDArray[np.uint8]:
    """Decode a fetched image to uint8 pixels (H, W) or (H, W, C).

    Args:
        image: the fetched image.
        exactly: spec of the only shape that is wanted; an image of more pixels is not decoded.

    Raises:
        Rejected: the image cannot be used.
    """
    if isinstance(image, Rejected):
        raise image
    return decode_foreign(image, exactly) if isinstance(image, bytes) else image


def converted(image: Image, spec: ImageSpec, resize: Resize) -> NDArray[np.uint8]:
    """Decode a fetched image, and convert it to the shape and levels of a dataset, (H, W, C).

    Raises:
        Rejected: the image cannot be used.
    """
    return to_spec(pixels_of(image, spec if resize == "none" else None), spec, resize)
