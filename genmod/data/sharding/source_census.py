"""Census of a source: what will be made of it, shown before work begins and kept in the dataset's manifest.

Letters: S splits, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmod.config import Config
from genmod.data.sharding.catalog import Catalog
from genmod.data.sharding.image_sample import ImageSample
from genmod.data.sharding.quarantine import count_reasons
from genmod.data.sharding.resolve import Resolved
from genmod.data.sources.config import DataConfig
from genmod.errors import sanitize
from genmod.manifest import SPLITS, ImageSpec

_LISTED_CLASSES, _LISTED_EMPTY, _LISTED_KINDS, _LISTED_DECISIONS = 20, 20, 20, 20
_TEXT = 300


class ClassRows(Config):
    """Rows of one class."""

    number: int
    name: str | None
    """None if classes have numbers only."""
    rows: dict[str, int]
    """Rows by split."""


class PassedOverKind(Config):
    """Files or members of one kind that are not inputs."""

    kind: str
    count: int
    first: str
    """Name of the first one."""


class SourceCensus(Config):
    """Properties of a source that the dataset depends on; of long lists the first entries."""

    source: str
    spec: ImageSpec
    inputs: int
    """Images of the source, including rejected ones, before any of them is decoded."""
    rows: dict[str, int]
    """Rows to write by split, before images that cannot be decoded are rejected."""
    in_previous: int = 0
    """Inputs that the previous version has."""
    rejected: dict[str, int]
    """Inputs rejected by name or label: their number by reason."""
    splits: str
    """What decides the split of a row."""
    passed_over: tuple[PassedOverKind, ...]
    decisions: tuple[str, ...]
    classes: tuple[ClassRows, ...]
    """The first classes."""
    empty: tuple[ClassRows, ...]
    """The first classes without training rows."""
    classes_without_rows: int
    classes_without_training_rows: int
    class_range: tuple[int, int] = (0, 0)
    """Smallest and largest number of rows of a class, in all splits together."""
    sample: ImageSample

    def as_metadata(self) -> dict[str, Any]:
        """JSON values for the dataset's manifest; its size is bounded."""
        return self.model_dump(mode="json", exclude={"source", "spec"})


def take_census(
    data: DataConfig, source: str, catalog: Catalog, resolved: Resolved, rows_SK: NDArray[np.int64]
) -> SourceCensus:
    """Collect the properties of a classified catalog.

    Args:
        data: the recipe's ``data``.
        source: text of the source.
        catalog: of the source.
        resolved: what the dataset will be, and the sample of images.
        rows_SK: rows of each split and class, with those of the previous version.
    """
    spec, class_names = resolved.spec, resolved.class_names
    census = catalog.scan.census
    in_train_K, total_K = rows_SK[SPLITS.index("train")], rows_SK.sum(axis=0)

    def of_classes(numbers: Iterable[int]) -> tuple[ClassRows, ...]:
        return tuple(
            ClassRows(
                number=number,
                name=_short(class_names[number]) if class_names else None,
                rows={split: int(rows_SK[s, number]) for s, split in enumerate(SPLITS)},
            )
            for number in numbers
        )

    rows = {split: catalog.rows_of(split) for split in SPLITS}
    return SourceCensus(
        source=source,
        spec=spec,
        inputs=catalog.inputs,
        rows=rows,
        in_previous=catalog.inputs - sum(rows.values()) - catalog.count_rejected,
        rejected=count_reasons(catalog.rejected(spec.classes)),
        splits="declared by the source"
        if data.splits == "source"
        else f"by a hash of the name: val {data.splits.val:g}, test {data.splits.test:g}",
        passed_over=tuple(
            PassedOverKind(kind=_short(kind), count=part.count, first=_short(part.first))
            for kind, part in [*census.passed_over.items()][:_LISTED_KINDS]
        ),
        decisions=tuple(map(_short, [*_copies(catalog), *census.decisions][:_LISTED_DECISIONS])),
        classes=of_classes(range(min(spec.classes, _LISTED_CLASSES))),
        empty=of_classes(np.flatnonzero(in_train_K == 0)[:_LISTED_EMPTY].tolist()),
        classes_without_rows=int((total_K == 0).sum()),
        classes_without_training_rows=int((in_train_K == 0).sum()),
        class_range=(int(total_K.min()), int(total_K.max())) if spec.classes else (0, 0),
        sample=resolved.sample,
    )


def _copies(catalog: Catalog) -> Iterator[str]:
    """What is kept several times, and in several splits."""
    found = catalog.copies.count(catalog.code_N)
    if found.copies:
        yield f"{found.copies} files are copies of others, byte for byte, and are kept"
    if found.in_several:
        name = catalog.names_of(np.array([found.first]))[found.first]
        yield (
            f"{found.in_several} images of val and test are in another split too, the first is "
            f"{sanitize(name)[:160]}: results on these splits look too good; remove the copies"
        )


def _short(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}..."
