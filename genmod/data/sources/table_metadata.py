"""What writers of Parquet tables declare of columns: Hugging Face's features, and pandas' categories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from genmod.budget import BUDGET
from genmod.data.sources.parquet_file import ParquetFile
from genmod.documents import parse_json
from genmod.errors import DataError, sanitize

_LISTS = ("Sequence", "List", "LargeList")
"""Features of Hugging Face datasets that are lists of another feature."""

_REMEDY = "write the file again"


class TableMetadata(NamedTuple):
    """Declarations in the metadata of a Parquet file, by column."""

    images: frozenset[str]
    """Columns that are images."""
    class_names: Mapping[str, tuple[str, ...]]
    """Columns whose integers are numbers of classes, and the names of the classes in order."""
    categories: Mapping[str, int]
    """Columns that are categories, and how many; the dictionary of the column has their order."""


def table_metadata(file: ParquetFile) -> TableMetadata:
    """Read the declarations of a file. Raises DataError if they are damaged."""
    images: set[str] = set()
    class_names: dict[str, tuple[str, ...]] = {}
    for name, feature in _features(file).items():
        kind, names = _feature(feature)
        if kind == "Image":
            images.add(name)
        elif kind == "ClassLabel" and names is not None:
            class_names[name] = _check_names(f"{file.url}: column {sanitize(name)[:80]}", names)
    return TableMetadata(frozenset(images), class_names, _categories(file))


def _object(value: Any) -> dict[str, Any]:
    """A JSON object; an empty one in place of another value."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _document(file: ParquetFile, key: str) -> dict[str, Any]:
    """The JSON object that a writer stored under a key of the schema's metadata; empty without one."""
    text = file.schema_metadata.get(key.encode())
    return {} if text is None else _object(parse_json(text, f"{file.url}: metadata {key}", _REMEDY))


def _features(file: ParquetFile) -> dict[str, Any]:
    info = _object(_document(file, "huggingface").get("info"))
    return _object(info.get("features"))


def _feature(feature: Any) -> tuple[str, Any]:
    """Type of a feature, or of the elements of a list; and its names, None without any."""
    if isinstance(feature, list) and len(cast("list[Any]", feature)) == 1:
        feature = cast("list[Any]", feature)[0]
    declared = _object(feature)
    if declared.get("_type") in _LISTS:
        declared = _object(declared.get("feature"))
    return str(declared.get("_type")), declared.get("names")


def _check_names(where: str, names: Any) -> tuple[str, ...]:
    """The names of classes. Raises DataError if they are no texts, too many or too long, or repeated."""
    if not isinstance(names, list):
        raise DataError(f"{where}: the names of its classes are no list; {_REMEDY}")
    names = cast("list[Any]", names)
    BUDGET.check(where, _REMEDY, classes=len(names))
    if not all(isinstance(name, str) and len(name) <= BUDGET.name_chars for name in names):
        raise DataError(f"{where}: a name of its classes is no text, or too long; {_REMEDY}")
    unique = dict.fromkeys(cast("list[str]", names))
    if len(unique) < len(names):
        raise DataError(f"{where}: two of its classes have the same name; rename one")
    return tuple(unique)


def _categories(file: ParquetFile) -> dict[str, int]:
    """Number of pandas' categories by column."""
    columns = _document(file, "pandas").get("columns")
    counts: dict[str, int] = {}
    for declared in map(_object, cast("list[Any]", columns) if isinstance(columns, list) else []):
        name = declared.get("field_name", declared.get("name"))
        count = _object(declared.get("metadata")).get("num_categories")
        if declared.get("pandas_type") == "categorical" and isinstance(name, str):
            counts[name] = count if isinstance(count, int) else 0
    return counts
