"""Source of NumPy archives: a zip file of arrays, each with a header that declares its shape and type."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from genmod import storage
from genmod.budget import BUDGET
from genmod.config import fingerprint
from genmod.data.sources.array_choice import (
    IMAGE_NAMES,
    LABEL_NAMES,
    ArrayChoice,
    ArrayHeader,
    choose_arrays,
)
from genmod.data.sources.arrays import (
    MAX_DEFLATE_RATIO,
    Arrays,
    ArraySource,
    channels_last,
    check_arrays,
    layout_of,
    number_labels,
    read_source_file,
)
from genmod.data.sources.census import Census
from genmod.data.sources.names import HIDDEN, is_hidden, pass_over_file
from genmod.data.sources.source import BAD_TEXT, NO_LABEL, UNNAMED
from genmod.data.sources.split_names import split_words
from genmod.errors import DataError, sanitize

_MAX_MEMBERS = 1000
"""Arrays of an archive."""

_MAX_HEADER = 10_000
"""Bytes of the header of an array; numpy parses no longer ones either."""

_MAGIC = b"\x93NUMPY"

_PREFIX = {1: "<H", 2: "<I"}
"""Type of the header's length, by major version."""

_ENTRY = b"PK\x01\x02"
"""Start of an entry in the directory of a zip file."""

_ERRORS = (
    ValueError,
    OSError,
    EOFError,
    TypeError,
    KeyError,
    IndexError,
    MemoryError,
    RecursionError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""Exceptions that zipfile and numpy raise on damaged files."""


class Npz(ArraySource):
    """A NumPy archive of uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W), and of their labels if any.

    Arrays with a word like ``train`` or ``test`` in their names are parts that declare a split.
    """

    kind = "npz"

    def load(self, census: Census) -> Arrays:
        """Read the archive, whose headers are checked before an array is decompressed."""
        data = read_source_file(self.where, self.text)
        if data.startswith(_MAGIC):
            raise DataError(
                f"{self.text} is one array; write it with its labels into an archive: "
                "numpy.savez('a.npz', images=..., labels=...)"
            )
        if data.count(_ENTRY) > _MAX_MEMBERS:
            raise DataError(f"{self.text} has more than {_MAX_MEMBERS} members; write fewer arrays")
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                choice = choose_arrays(self.text, self._headers(archive, census), self.options)
                _check_sizes(self.text, choice)
                images = [_read(archive, part.images) for part in choice.parts]
                labels = [_read(archive, p.labels) for p in choice.parts if p.labels is not None]
                names = None if choice.class_names is None else _read(archive, choice.class_names)
        except DataError:
            raise
        except _ERRORS as error:
            text = sanitize(" ".join(str(error).split()))[:160] or type(error).__name__
            raise DataError(f"{self.text} is not a readable npz file ({text})") from None
        if labels and len(labels) < len(images):
            raise DataError(f"{self.text}: only some of the arrays of images have labels")
        census.decide(choice.decision)
        if max(int(part.max(initial=0)) for part in images) <= 1:
            census.decide(
                "all pixels are 0 or 1 of 255, nearly black: multiply them by 255 if they are binary"
            )
        labels_N, class_names, declares_order = _labels_of(self.text, labels, names)
        return Arrays(
            prefixes=tuple(f"{part.split}-" if part.split else "" for part in choice.parts),
            images=tuple(
                np.moveaxis(part, 1, 3) if layout_of(part.shape) == "NCHW" else part
                for part in images
            ),
            labels_N=labels_N,
            fingerprint=fingerprint(self.kind, storage.sha256(data)),
            class_names=class_names,
            declares_order=declares_order,
            splits=tuple(part.split for part in choice.parts),
        )

    def _headers(self, archive: zipfile.ZipFile, census: Census) -> list[ArrayHeader]:
        """Headers of all arrays. One that cannot be read is an error only if its name says it is meant."""
        headers: list[ArrayHeader] = []
        errors: dict[str, Exception] = {}
        names: list[str] = []
        for name in archive.namelist():
            if is_hidden(name):
                census.pass_over(HIDDEN, name)
            elif name.endswith(".npy"):
                names.append(name.removesuffix(".npy"))
            elif not name.endswith("/"):
                pass_over_file(census, name)
        for name in names:
            try:
                headers.append(_header(archive, name))
            except _ERRORS as error:
                errors[name] = error
        meant = (*IMAGE_NAMES, *LABEL_NAMES, self.options.image, self.options.label)
        for name, error in errors.items():
            if not headers or name in meant or split_words(name)[1] in meant:
                raise error
            census.pass_over("arrays of objects, or that cannot be read", name)
        return headers


def _check_sizes(where: str, choice: ArrayChoice) -> None:
    """Check what the chosen arrays declare, before they are read. Raises DataError."""
    images = [part.images for part in choice.parts]
    labels = [part.labels for part in choice.parts if part.labels is not None]
    size_bytes = sum(array.size_bytes for array in images)
    check_arrays(where, [channels_last(array.shape) for array in images], size_bytes)
    # Labels are read, and converted to 8 bytes.
    size_bytes += sum(array.size_bytes + 8 * array.shape[0] for array in labels)
    if choice.class_names is not None:
        BUDGET.check(where, classes=choice.class_names.shape[0])
        size_bytes += choice.class_names.size_bytes
    BUDGET.check(where, array_bytes=size_bytes)


def _labels_of(
    where: str, labels: Sequence[NDArray[Any]], names: NDArray[Any] | None
) -> tuple[NDArray[np.int64] | None, tuple[str, ...], bool]:
    """Labels of all parts, names of the classes, and whether their order is declared.

    Raises:
        DataError: the labels of one part are names, of another numbers.
    """
    if not labels:
        return None, (), False
    kinds = {array.dtype.kind in "SU" for array in labels}
    if len(kinds) > 1:
        raise DataError(f"{where}: labels are numbers in one array, and texts in another")
    label_N = np.concatenate([array.reshape(-1) for array in labels])
    if label_N.dtype.kind in "SU":
        values, position_N = np.unique(label_N, return_inverse=True)
        texts = list(map(_text, values.tolist()))
        class_names = tuple(text for text in texts if text is not None and text.strip())
        # An empty text is no label.
        number = {text: position for position, text in enumerate(class_names)} | {None: BAD_TEXT}
        numbers = np.array([number.get(text, NO_LABEL) for text in texts], dtype=np.int64)
        return numbers[position_N.reshape(-1)], class_names, False
    if label_N.dtype.kind == "b":
        return label_N.astype(np.int64), ("false", "true"), True
    labels_N = number_labels(label_N)
    class_names = tuple(_text(name) or "" for name in names.tolist()) if names is not None else ()
    if len(set(class_names)) < len(class_names):
        raise DataError(f"{where}: two classes have the same name; rename one")
    if class_names:
        labels_N[labels_N >= len(class_names)] = UNNAMED
    return labels_N, class_names, bool(class_names)


def _text(value: str | bytes) -> str | None:
    """A label that is text; None if it is too long for a name, or not Unicode."""
    try:
        text = value.decode() if isinstance(value, bytes) else value
        text.encode()
    except UnicodeError:
        return None
    return text if len(text) <= BUDGET.name_chars else None


def _header(archive: zipfile.ZipFile, name: str) -> ArrayHeader:
    """Read the header of an array, and check that its file is as large as it says. Raises ValueError."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        raise ValueError(f"{name}.npy is encrypted, or its compression is not that of numpy")
    with archive.open(info) as stream:
        start = stream.read(8)
        length_type = _PREFIX.get(start[6]) if start.startswith(_MAGIC) else None
        if length_type is None:
            raise ValueError(f"{name}.npy is not an array")
        start += stream.read(struct.calcsize(length_type))
        (length,) = struct.unpack(length_type, start[8:])
        if length > _MAX_HEADER:
            raise ValueError(f"{name}.npy has a header of {length} bytes")
        header = io.BytesIO(start + stream.read(length))
    read = (
        npy.read_array_header_1_0 if npy.read_magic(header)[0] == 1 else npy.read_array_header_2_0
    )
    shape, _, dtype = read(header, max_header_size=_MAX_HEADER)
    if dtype.hasobject or any(side < 0 for side in shape):
        raise ValueError(f"{name}.npy is {dtype} {shape}, expected numbers or texts (astype(str))")
    declared = ArrayHeader(name, tuple(int(side) for side in shape), dtype)
    available = min(info.file_size, MAX_DEFLATE_RATIO * (info.compress_size + 1)) - header.tell()
    if declared.size_bytes > available:
        raise ValueError(
            f"{name}.npy declares {declared.size_bytes} bytes, has at most {available}"
        )
    return declared


def _read(archive: zipfile.ZipFile, declared: ArrayHeader) -> NDArray[Any]:
    with archive.open(f"{declared.name}.npy") as stream:
        array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    if array.shape != declared.shape or array.dtype != declared.dtype:
        raise ValueError(f"{declared.name}.npy changed while it was read")
    return array
