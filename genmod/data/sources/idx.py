"""Source of MNIST-format files: arrays with a header of their type and shape, gzipped or not."""

from __future__ import annotations

import gzip
import io
import math
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genmod import storage
from genmod.budget import BUDGET
from genmod.config import fingerprint
from genmod.data.sources.arrays import (
    MAX_DEFLATE_RATIO,
    Arrays,
    ArraySource,
    channels_last,
    check_arrays,
    layout_of,
    number_labels,
    read_source_file,
    refuse_options,
)
from genmod.data.sources.census import Census
from genmod.data.sources.listing import check_listable
from genmod.data.sources.names import HIDDEN, extension_of, is_hidden_name, pass_over_file
from genmod.data.sources.split_names import split_words
from genmod.errors import DataError, sanitize
from genmod.manifest import Split

_IMAGES = re.compile(r"(?P<prefix>.*)-images[.-]idx[34]-\w+(\.gz)?\Z", re.IGNORECASE | re.DOTALL)
_LABELS = r"-labels[.-]idx\d-\w+(\.gz)?\Z"

_TYPES: Mapping[int, str] = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
"""Types of the values by their number in the third byte."""

_NUMBER = re.compile(r"_?\d+\Z")


class _Part(NamedTuple):
    """The files of one prefix."""

    images: NDArray[np.uint8]
    labels_N: NDArray[np.int64] | None
    digests: list[str]
    names: list[str]


class Idx(ArraySource):
    """A folder of PREFIX-images-idx3-ubyte, with PREFIX-labels-idx1-ubyte if labelled; also gzipped.

    A prefix with a word like ``train``, ``test`` or ``t10k`` declares a split.
    """

    kind = "idx"

    def load(self, census: Census) -> Arrays:
        """Read all images and labels of the folder, prefixes in alphabetical order."""
        refuse_options(self, "label")
        check_listable(self.text, self.where)
        fs, root = storage.filesystem(self.where)
        files: list[str] = []
        for name in storage.list_names(self.where):
            # Unpacked archives have folders that are named as the files in them.
            if is_hidden_name(name):
                census.pass_over(HIDDEN, name)
            elif (_IMAGES.match(name) or not extension_of(name)) and fs.isdir(f"{root}/{name}"):
                census.pass_over("folders", name)
            else:
                files.append(name)
        prefixes = sorted({match["prefix"] for name in files if (match := _IMAGES.match(name))})
        if not prefixes:
            raise DataError(
                f"{self.text}: no *-images-idx3-ubyte(.gz) in that folder; check the path"
            )
        prefixes = self._choose(prefixes)
        shapes: list[Sequence[int]] = []
        parts = {prefix: self._part(prefix, files, shapes, census) for prefix in prefixes}
        used = {name for part in parts.values() for name in part.names}
        for name in files:
            if name not in used:
                _pass_over(census, name)
        labels = [part.labels_N for part in parts.values() if part.labels_N is not None]
        if labels and len(labels) != len(parts):
            raise DataError(f"{self.text}: only some of the image files have a labels file")
        return Arrays(
            prefixes=tuple(f"{prefix}-" for prefix in parts),
            images=tuple(part.images for part in parts.values()),
            labels_N=np.concatenate(labels) if labels else None,
            fingerprint=fingerprint(
                self.kind, [d for part in parts.values() for d in part.digests]
            ),
            splits=tuple(split_words(prefix)[0] for prefix in parts),
        )

    def _choose(self, prefixes: Sequence[str]) -> list[str]:
        """Prefixes of one dataset. Raises DataError if the folder has files of several."""
        option = self.options.image
        chosen = [
            p for p in prefixes if option is None or p == option or p.startswith(f"{option}-")
        ]
        shown = sanitize(", ".join(prefixes))[:300]
        if not chosen:
            raise DataError(
                f"{self.text}: data.image={option} is none of the prefixes in that folder: {shown}"
            )
        # Parts of one dataset differ in their split or number; datasets differ in other words.
        datasets: dict[Split | None, set[str]] = {}
        for prefix in chosen:
            split, words = split_words(prefix)
            datasets.setdefault(split, set()).add(_NUMBER.sub("", words))
        if any(len(words) > 1 for words in datasets.values()):
            raise DataError(
                f"{self.text}: the prefixes {shown} are those of several datasets; choose with data.image, "
                f"e.g. data.image={sanitize(prefixes[0])[:80]}, or move the files to several folders"
            )
        return chosen

    def _part(
        self, prefix: str, files: Sequence[str], shapes: list[Sequence[int]], census: Census
    ) -> _Part:
        """Read the files of a prefix; ``shapes`` are those of the images before, and get the new one."""
        names = [n for n in files if (match := _IMAGES.match(n)) and match["prefix"] == prefix]
        images, digest = self._read_copies(names, None, shapes, census)
        shapes.append(channels_last(images.shape))
        if layout_of(images.shape) == "NCHW":
            census.decide(f"{sanitize(names[0])[:80]}: {images.shape} is read as N, channels, H, W")
            images = np.moveaxis(images, 1, 3)
        digests = [prefix, digest]
        pattern = re.compile(re.escape(prefix) + _LABELS, re.IGNORECASE)
        of_labels = [name for name in files if pattern.match(name)]
        names += of_labels
        if not of_labels or not self.options.labels:
            return _Part(images, None, digests, names)
        values, digest = self._read_copies(of_labels, len(images), shapes, census)
        return _Part(images, number_labels(values), [*digests, digest], names)

    def _read_copies(
        self,
        names: Sequence[str],
        rows: int | None,
        shapes: Sequence[Sequence[int]],
        census: Census,
    ) -> tuple[NDArray[Any], str]:
        """Read the first of several files of one prefix. Raises DataError if the others differ."""
        values, digest = self._read(names[0], rows, shapes)
        for name in names[1:]:
            if not np.array_equal(values, self._read(name, rows, shapes)[0], equal_nan=True):
                raise DataError(
                    f"{self.text}: {sanitize(names[0])} and {sanitize(name)} differ; remove one"
                )
            census.pass_over("second copies of a file", name)
        return values, digest

    def _read(
        self, name: str, rows: int | None, shapes: Sequence[Sequence[int]]
    ) -> tuple[NDArray[Any], str]:
        """Read an IDX file: magic 0 0 TYPE D, D big-endian sizes, then the values.

        Args:
            name: of the file.
            rows: number of labels of a file of labels; None for a file of images.
            shapes: of the images before.
        """
        url = storage.join(self.where, name)
        data = read_source_file(url, self.text)
        is_gzip = data[:2] == b"\x1f\x8b"
        try:
            with gzip.open(io.BytesIO(data)) if is_gzip else io.BytesIO(data) as stream:
                dtype, shape = _header(url, stream, rows is not None)
                count = math.prod(shape)
                if rows is None:
                    all_shapes = [*shapes, channels_last(shape)]
                    check_arrays(url, all_shapes, sum(map(math.prod, all_shapes)))
                elif count != rows:
                    raise DataError(f"{url} contains {count} labels for {rows} images")
                size_bytes = count * dtype.itemsize
                if size_bytes > len(data) * (MAX_DEFLATE_RATIO if is_gzip else 1):
                    raise DataError(f"{url} declares {count} values in {len(data)} bytes")
                BUDGET.check(url, array_bytes=size_bytes)
                values = stream.read(size_bytes + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{url} is corrupt ({error}); download it again") from None
        if len(values) != size_bytes:
            raise DataError(
                f"{url} does not contain the {count} values that it declares; download it again"
            )
        return np.frombuffer(values, dtype=dtype).reshape(shape), storage.sha256(data)


def _pass_over(census: Census, name: str) -> None:
    """Count a file that is none of the chosen images and labels."""
    if _IMAGES.match(name) or re.search(_LABELS, name, re.IGNORECASE):
        census.pass_over("IDX files of other prefixes", name)
    else:
        pass_over_file(census, name)


def _header(url: str, stream: Any, is_labels: bool) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape that a file declares. Raises DataError if they are not those of images or labels."""
    magic = stream.read(4)
    known = len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in _TYPES
    dimensions = magic[3] if known else 0
    if is_labels and known and dimensions == 2:
        raise DataError(
            f"{url} has several labels for each image; write one in a file of 1 dimension, or remove the file"
        )
    if not known or dimensions not in ((1,) if is_labels else (3, 4)):
        expected = "labels in 1 dimension" if is_labels else "bytes in 3 dimensions"
        raise DataError(f"{url} is not an IDX file of {expected}")
    dtype = np.dtype(_TYPES[magic[2]])
    sizes = stream.read(4 * dimensions)
    if len(sizes) != 4 * dimensions:
        raise DataError(f"{url} ends in its header; download it again")
    shape = struct.unpack(f">{dimensions}I", sizes)
    if not is_labels and (dtype != np.uint8 or layout_of(shape) is None):
        raise DataError(
            f"{url}: images are {dtype} {shape}, expected bytes (N, H, W) or (N, H, W, 1 or 3); convert them"
        )
    return dtype, shape
