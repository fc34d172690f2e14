"""Chooses the arrays of images and labels in an archive: by the recipe, by name, by shape, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from genmod.data.sources.arrays import layout_of
from genmod.data.sources.config import SourceOptions
from genmod.data.sources.split_names import split_words
from genmod.errors import DataError, sanitize
from genmod.manifest import SPLITS, Split

IMAGE_NAMES = ("images", "image", "imgs", "img", "x", "data")
"""Names of arrays of images, without the word of a split."""

LABEL_NAMES = ("labels", "label", "y", "targets", "target")
"""Names of arrays of labels, without the word of a split."""

_CLASS_NAMES = ("class_names", "label_names", "classes")
"""Names of arrays that contain the name of each class number."""

_EXPECTED = "uint8 (N, H, W) or (N, H, W, 1 or 3)"


class ArrayHeader(NamedTuple):
    """What the header of an array says."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size_bytes(self) -> int:
        """Bytes of the values."""
        count = 1
        for side in self.shape:
            count *= side
        return count * self.dtype.itemsize

    @property
    def base(self) -> str:
        """Name without the word of a split."""
        return split_words(self.name)[1]

    @property
    def split(self) -> Split | None:
        """Split that the name declares."""
        return split_words(self.name)[0]

    def __str__(self) -> str:
        return f"{sanitize(self.name)[:80]} {self.dtype} {self.shape}"


class ChosenPart(NamedTuple):
    """The arrays of one split, or of all rows."""

    split: Split | None
    images: ArrayHeader
    labels: ArrayHeader | None


class ArrayChoice(NamedTuple):
    """The arrays of an archive that are read."""

    parts: Sequence[ChosenPart]
    class_names: ArrayHeader | None
    """Array of the names of the class numbers."""
    decision: str
    """What was chosen, and the keys that choose otherwise."""


def choose_arrays(where: str, arrays: Sequence[ArrayHeader], options: SourceOptions) -> ArrayChoice:
    """Choose the arrays of an archive.

    Args:
        where: the archive, for errors.
        arrays: its arrays.
        options: the recipe's ``data.image`` and ``data.label``, with or without the word of a split.

    Raises:
        DataError: no array, or several, could be meant; or the chosen one has another type or shape.
    """
    groups: dict[Split | None, list[ArrayHeader]] = {split: [] for split in (None, *SPLITS)}
    for array in arrays:
        groups[array.split].append(array)
    images = _images_by_split(where, arrays, groups, options.image)
    by_option: dict[Split | None, ArrayHeader] = {}
    if options.label is not None:
        by_option = _by_option(where, arrays, options.label, "label")
    parts: list[ChosenPart] = []
    for split, array in images.items():
        _check_images(where, array)
        # The labels of the only images need not have the word of their split.
        only = len(images) == 1
        labels = None
        if by_option:
            labels = next(iter(by_option.values())) if only else by_option.get(split)
            if labels is None:
                raise _no_labels(where, options.label, array, arrays)
        elif options.labels:
            labels = _labels(where, groups[split], array)
            labels = _labels(where, groups[None], array) if labels is None and only else labels
        _check_labels(where, labels, array)
        parts.append(ChosenPart(split, array, labels))
    class_names = _class_names(arrays)
    return ArrayChoice(parts, class_names, _decision(arrays, parts, class_names))


def _by_option(
    where: str, arrays: Sequence[ArrayHeader], option: str, key: str
) -> dict[Split | None, ArrayHeader]:
    """The array of a name, else the arrays that have it with the word of a split."""
    chosen = [array for array in arrays if array.name == option]
    split, base = split_words(option)
    if not chosen and split is None:
        chosen = [array for array in arrays if array.base == base]
    if not chosen:
        raise DataError(
            f"{where}: data.{key}={sanitize(option)[:80]} is no array of it; arrays: {_listed(arrays)}"
        )
    by_split: dict[Split | None, ArrayHeader] = {array.split: array for array in chosen}
    if len(by_split) < len(chosen):
        raise _ambiguous(where, chosen, key)
    return by_split


def _images_by_split(
    where: str,
    arrays: Sequence[ArrayHeader],
    groups: Mapping[Split | None, Sequence[ArrayHeader]],
    option: str | None,
) -> dict[Split | None, ArrayHeader]:
    """The images of each split that has some. Raises DataError if some have a split and others none."""
    if option is not None:
        return _by_option(where, arrays, option, "image")
    images: dict[Split | None, ArrayHeader] = {}
    for split, group in groups.items():
        if (array := _images(where, group)) is not None:
            images[split] = array
    if not images:
        raise _no_images(where, arrays)
    if None in images and len(images) > 1:
        raise _ambiguous(where, list(images.values()), "image")
    return images


def _images(where: str, group: Sequence[ArrayHeader]) -> ArrayHeader | None:
    """The images among the arrays of one split: by name, else by type and shape."""
    shaped = [array for array in group if layout_of(array.shape) is not None]
    chosen = [array for array in shaped if array.base in IMAGE_NAMES] or [
        array for array in shaped if array.dtype == np.uint8
    ]
    if len(chosen) > 1:
        raise _ambiguous(where, chosen, "image")
    return chosen[0] if chosen else None


def _labels(where: str, group: Sequence[ArrayHeader], images: ArrayHeader) -> ArrayHeader | None:
    """The labels of an array of images: by name, else by type and shape; None if there are none."""
    others = [array for array in group if array is not images]
    chosen = [array for array in others if array.base in LABEL_NAMES] or [
        array for array in others if _is_labels(array, images.shape[0])
    ]
    if len(chosen) > 1:
        raise _ambiguous(where, chosen, "label")
    return chosen[0] if chosen else None


def _is_labels(array: ArrayHeader, rows: int) -> bool:
    return array.dtype.kind in "biuSU" and array.shape in ((rows,), (rows, 1))


def _check_images(where: str, images: ArrayHeader) -> None:
    """Raise DataError if an array does not contain uint8 images; other types have no known range."""
    if images.dtype == np.uint8 and layout_of(images.shape) is not None:
        return
    remedy = "reshape them"
    if layout_of(images.shape) is not None:
        scale = "(255 * x).round()" if images.dtype.kind in "fb" else "x"
        remedy = f"convert them, e.g. {scale}.astype('uint8') if they are 0 to "
        remedy += "1, x.astype('uint8') if 0 to 255" if images.dtype.kind == "f" else "255"
        if images.dtype.kind == "b":
            remedy = "convert them: (255 * x).astype('uint8')"
    raise DataError(
        f"{where}: images are {images.dtype} {images.shape} (array {sanitize(images.name)[:80]}), expected "
        f"{_EXPECTED}; {remedy}"
    )


def _check_labels(where: str, labels: ArrayHeader | None, images: ArrayHeader) -> None:
    """Raise DataError if an array does not contain one label for each image."""
    rows, side, *rest = images.shape
    if labels is None and rest in ([3], [4]) and side > rest[0]:
        raise DataError(
            f"{where}: {images} could be one image (H, W, channels); write it as (N, H, W, channels)"
        )
    if labels is None or _is_labels(labels, rows):
        return
    remedy = "convert them"
    if len(labels.shape) == 2 and labels.shape[0] == rows:
        remedy = "write one per image, e.g. labels.argmax(axis=1) if they are one-hot"
    elif labels.dtype.kind == "f":
        remedy = "convert them with astype(int)"
    raise DataError(
        f"{where}: labels are {labels.dtype} {labels.shape} (array {sanitize(labels.name)[:80]}), expected "
        f"integers or texts {(rows,)}; {remedy}, or choose another array with data.label"
    )


def _class_names(arrays: Sequence[ArrayHeader]) -> ArrayHeader | None:
    named = [a for a in arrays if "_".join(a.name.lower().split()) in _CLASS_NAMES]
    texts = [array for array in named if array.dtype.kind in "SU" and len(array.shape) == 1]
    return texts[0] if len(texts) == 1 else None


def _decision(
    arrays: Sequence[ArrayHeader], parts: Sequence[ChosenPart], class_names: ArrayHeader | None
) -> str:
    labels = [part.labels for part in parts if part.labels is not None]
    images = [part.images for part in parts]
    text = f"images are those of {_names(images)}"
    text += f", labels those of {_names(labels)}" if labels else ", without labels"
    if any(layout_of(array.shape) == "NCHW" for array in images):
        text += f", with axes N, channels, H, W {images[0].shape}"
    rest = [a for a in arrays if a not in images and a not in labels and a is not class_names]
    if rest:
        text += f"; not used: {_listed(rest)}"
    return f"{text}: data.image and data.label choose others"


def _names(arrays: Sequence[ArrayHeader]) -> str:
    return sanitize(", ".join(array.name for array in arrays))[:200]


def _listed(arrays: Sequence[ArrayHeader]) -> str:
    return ", ".join(map(str, arrays))[:400] or "nothing"


def _ambiguous(where: str, arrays: Sequence[ArrayHeader], key: str) -> DataError:
    return DataError(
        f"{where}: the {key} could be array {_listed(arrays)}; choose with data.{key}, "
        f"e.g. data.{key}={sanitize(arrays[0].name)[:80]}"
    )


def _no_labels(
    where: str, option: str | None, images: ArrayHeader, arrays: Sequence[ArrayHeader]
) -> DataError:
    return DataError(
        f"{where}: data.label={sanitize(option or '')[:80]} has no array for {images}; "
        f"arrays: {_listed(arrays)}"
    )


def _no_images(where: str, arrays: Sequence[ArrayHeader]) -> DataError:
    return DataError(
        f"{where} contains {_listed(arrays)}; expected one array of images, {_EXPECTED}, or the one that "
        "data.image chooses, and its labels (N,) or data.label"
    )
