"""Chooses the columns of images, labels and splits of a table: by the recipe, by name, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from genmod.data.format.magic import HEAD_BYTES, image_format
from genmod.data.sources.config import SourceOptions
from genmod.data.sources.parquet_file import ParquetFile
from genmod.data.sources.source import NO_LABEL
from genmod.data.sources.table_metadata import TableMetadata, table_metadata
from genmod.errors import DataError, did_you_mean, sanitize

_IMAGE_NAMES = ("image", "img", "png", "jpg", "jpeg", "bytes")
"""Names of columns of images. They contain bytes, or structs with a field ``bytes``."""

_LABEL_NAMES = (
    "labels", "cls", "class", "classes", "target", "category", "class_name", "label_name", "class_id",
    "label_id", "category_id",
)  # fmt: skip
"""Names of columns of labels, after ``label``."""

_LABEL_ENDS = ("_label", "_class")

_SPLIT_NAME = "split"

_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""Value of the folder of rows without a value, as Hive writes it."""

_BYTES_TYPES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)


class ChosenColumns(NamedTuple):
    """Columns of one file; a path has dots between the fields of structs."""

    image: str
    label: str | None
    label_value: int | str | None
    """The label of all rows, from a folder ``label=VALUE``; None if there is none."""
    class_names: tuple[str, ...]
    """Declared names of the classes of an integer label."""
    categories: int
    """Number of categories of the label column; 0 if it declares none."""
    split: str | None
    split_value: str | None
    """The split of all rows, from a folder ``split=VALUE``; None if there is none."""
    decision: str
    """What was chosen, and the keys that choose otherwise."""


def choose_columns(
    file: ParquetFile, options: SourceOptions, partitions: Mapping[str, str]
) -> ChosenColumns:
    """Choose the columns of a file.

    Args:
        file: the table.
        options: the recipe's ``data.image`` and ``data.label``.
        partitions: columns that the folders of the file declare, with their value.

    Raises:
        DataError: no column, or several, could be meant; or the chosen one has another type.
    """
    metadata = table_metadata(file)
    image = _image(file, options.image, metadata)
    top_image = image if image in file.names else image.partition(".")[0]
    names = [name for name in [*file.names, *partitions] if name != top_image]
    label, others = _label(file, options.label, names, metadata) if options.labels else (None, [])
    split = next((name for name in names if name.lower() == _SPLIT_NAME), None)
    chosen = f"images are those of column {top_image}"
    if label is None:
        rest = ", ".join(name for name in names if name != split) if options.labels else ""
        chosen += f", there is no column of labels (others: {rest})" if rest else ", without labels"
    else:
        chosen += f", labels those of column {label}"
    if others:
        chosen += f", not of {', '.join(others)}"
    in_file = label in file.names or label not in partitions
    return ChosenColumns(
        image=image,
        label=label if in_file else None,
        label_value=None if in_file or label is None else _value(partitions[label]),
        class_names=metadata.class_names.get(label or "", ()),
        categories=metadata.categories.get(label or "", 0),
        split=split if split in file.names else None,
        split_value=None if split is None or split in file.names else partitions[split],
        decision=f"{sanitize(chosen)[:400]}: data.image and data.label choose others",
    )


def image_path(file: ParquetFile, name: str) -> str | None:
    """Path of the bytes of a column of images; None if its type is another."""
    for path in (name, f"{name}.bytes"):
        kind = file.type_of(path)
        if kind is not None and pa.types.is_dictionary(kind):
            kind = kind.value_type
        if kind is not None and any(is_bytes(kind) for is_bytes in _BYTES_TYPES):
            return path
    return None


def _image(file: ParquetFile, option: str | None, metadata: TableMetadata) -> str:
    if option is not None:
        return _bytes_of(file, _existing(file, option, "image", file.names))
    twice = next((n for n in file.names if _is_image_name(n) and file.names.count(n) > 1), None)
    if twice is not None:
        raise DataError(f"{file.url}: several columns {sanitize(twice)}; rename them")
    paths = {name: path for name in file.names if (path := image_path(file, name)) is not None}
    if not paths:
        named = next((name for name in file.names if _is_image_name(name)), None)
        if named is not None:
            return _bytes_of(file, named)
        raise DataError(
            f"{file.url}: columns {_listed(file.names)}; expected a column of image bytes named "
            f"{' or '.join(_IMAGE_NAMES)}, or chosen with data.image"
        )
    # By name, else by the metadata, else by the first value.
    candidates = [name for name in paths if _is_image_name(name)] or list(paths)
    if len(candidates) > 1:
        candidates = [name for name in candidates if name in metadata.images] or candidates
    if len(candidates) > 1:
        candidates = [n for n in candidates if _contains_image(file, paths[n])] or candidates
    if len(candidates) > 1:
        raise _ambiguous(file, candidates, "image")
    return paths[candidates[0]]


def _is_image_name(name: str) -> bool:
    return name.lower() in _IMAGE_NAMES


def _bytes_of(file: ParquetFile, name: str) -> str:
    """Path of the bytes of a column. Raises DataError if it has none."""
    path = image_path(file, name)
    if path is None:
        kind = sanitize(str(file.type_of(name)))[:80]
        raise DataError(
            f"{file.url}: column {sanitize(name)[:80]} is {kind}, expected bytes of image files"
        )
    return path


def _contains_image(file: ParquetFile, path: str) -> bool:
    """Whether the first value of a column starts as the file of an image does."""
    column = file.column(path)
    for group in range(file.groups):
        column.check_group(group)
        for chunk in column.read(group).chunks:
            for value in chunk:
                if (data := value.as_py()) is not None:
                    return image_format(data[:HEAD_BYTES]) is not None
    return False


def _label(
    file: ParquetFile, option: str | None, names: Sequence[str], metadata: TableMetadata
) -> tuple[str | None, list[str]]:
    """The column of labels, None if there is none; and other columns that could be meant."""
    if option is not None:
        return _existing(file, option, "label", names), []
    candidates = [
        name
        for name in names
        if name.lower() in ("label", *_LABEL_NAMES)
        or name.lower().endswith(_LABEL_ENDS)
        or name in metadata.class_names
    ]
    chosen = [name for name in candidates if name.lower() == "label"] or candidates
    if len(chosen) > 1:
        raise _ambiguous(file, chosen, "label")
    return (chosen[0] if chosen else None), [name for name in candidates if name not in chosen]


def _existing(file: ParquetFile, option: str, key: str, names: Iterable[str]) -> str:
    """The column that the recipe chooses. Raises DataError if the file does not have it once."""
    names = list(names)
    if names.count(option) > 1:
        raise DataError(f"{file.url}: several columns {sanitize(option)}; rename them")
    if option not in names and file.type_of(option) is None:
        hint = sanitize(did_you_mean(option, names))[:300]
        raise DataError(
            f"{file.url}: no column {sanitize(option)[:80]}, which data.{key} chooses; {hint}"
        )
    return option


def _ambiguous(file: ParquetFile, names: Sequence[str], key: str) -> DataError:
    return DataError(
        f"{file.url}: the {key} could be column {_listed(names)}; choose with data.{key}, "
        f"e.g. data.{key}={sanitize(names[0])[:80]}"
    )


def _value(text: str) -> int | str:
    return NO_LABEL if text == _NULL_PARTITION else text


def _listed(names: Iterable[str]) -> str:
    return sanitize(", ".join(names))[:200]


def text_type(kind: Any) -> bool:
    """Whether an Arrow type is text, or a dictionary of texts."""
    if kind is not None and pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return kind is not None and any(test(kind) for test in tests)
