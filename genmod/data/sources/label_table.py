"""Files with the labels of images: CSV and JSON lines with a column of file names, and ``dataset.json``."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from genmod import storage
from genmod.budget import BUDGET
from genmod.data.sources.label_rows import LABELS_REMEDY, LabelRow, LabelTable
from genmod.data.sources.labels import label_of, parse_label, text_encoding
from genmod.data.sources.source import NO_LABEL
from genmod.data.sources.split_names import split_named
from genmod.documents import parse_json
from genmod.errors import ConfigError, DataError, sanitize

FILE_COLUMNS = (
    *("file_name", "filename", "file", "image", "image_path", "path", "filepath", "file_path"),
    *("image_name", "image_file", "img", "img_name", "image_id", "id", "name"),
)
"""Names of the column of file names, by priority."""

LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "class_id", "class_label", "cls", "category"),
    *("category_name", "category_id", "target", "label_name", "label_id"),
)
"""Names of the column of labels."""

_SPLIT_COLUMN = "split"
"""Name of the column of splits."""

STYLEGAN = "dataset.json"
"""Name of the file that the tools of StyleGAN and EDM write: ``{"labels": [["00000/0.png", 6], ...]}``."""

_DELIMITERS = ",;\t|"
_SHOWN = 60


class Columns(NamedTuple):
    """Columns of a table that are file names and labels."""

    delimiter: str
    """Of a CSV file; empty for JSON lines and dataset.json."""
    file: str
    labels: tuple[str, ...]
    """Columns that may be the label."""
    split: str | None = None
    """Column of the split that each row declares."""


def columns_of(name: str, start: bytes) -> Columns | None:
    """Columns of a table, from its first bytes; None if it has no column of file names or of labels."""
    text = start.decode(text_encoding(start), "replace")
    if name.lower().endswith(".jsonl"):
        try:
            first = parse_json(text.partition("\n")[0].encode(), name, "")
        except DataError:
            return None
        return _choose("", list(first)) if isinstance(first, dict) else None
    for delimiter in _DELIMITERS:
        try:
            header = next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
        except csv.Error:
            return None
        if columns := _choose(delimiter, header):
            return columns
    return None


def _choose(delimiter: str, header: Sequence[str]) -> Columns | None:
    names = {_normal(column): column for column in reversed(header)}
    file = next((names[name] for name in FILE_COLUMNS if name in names), None)
    labels = tuple(names[name] for name in LABEL_COLUMNS if name in names)
    if file is None or not labels:
        return None
    return Columns(delimiter, file, labels, names.get(_SPLIT_COLUMN))


def _normal(column: str) -> str:
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def read_labels(name: str, url: str, column: str | None) -> LabelTable:
    """Read a file with labels.

    Args:
        name: for errors and reports.
        url: of the file.
        column: of the labels; None: the only one with a usual name.

    Raises:
        ConfigError: no such column, or several could be meant.
        DataError: the file does not exist, is too large, or is no such table.
    """
    try:
        data = storage.read_bytes(url, BUDGET.document_bytes)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        reason = error.strerror or "no such file"
        raise DataError(f"{sanitize(url)}: {reason}; check data.label") from None
    if posixpath.basename(name) == STYLEGAN:
        return LabelTable(name, _stylegan_rows(name, data))
    try:
        text = data.decode(text_encoding(data))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{sanitize(name)} is not UTF-8 at byte {error.start}; {LABELS_REMEDY}"
        ) from None
    rows = _json_rows(name, text) if name.lower().endswith(".jsonl") else _csv_rows(name, text)
    header = next(rows, [])
    file, label = _positions(name, header, column)
    split = next((n for n, text in enumerate(header) if _normal(str(text)) == _SPLIT_COLUMN), None)
    known: dict[Any, int | str] = {}
    return LabelTable(name, _labelled(rows, file, label, split, known))


def _positions(name: str, header: Sequence[Any], column: str | None) -> tuple[int, int]:
    """Positions of the file name and of the label."""
    header = [str(text) for text in header]
    shown = sanitize(", ".join(header))[:200]
    columns = _choose("", header)
    files = [names for names in map(_normal, header) if names in FILE_COLUMNS and names != column]
    if not files:
        raise DataError(
            f"{sanitize(name)}: columns {shown}; expected one of {', '.join(FILE_COLUMNS[:5])}, ... with the "
            f"names of images; {LABELS_REMEDY}"
        )
    file = min(files, key=FILE_COLUMNS.index)
    at = [_normal(text) for text in header].index(file)
    if column is not None:
        matches = [n for n, text in enumerate(header) if text.strip() == column.strip()]
        matches = matches or [
            n for n, text in enumerate(header) if _normal(text) == _normal(column)
        ]
        if not matches:
            raise ConfigError(
                f"recipe: data.label: {sanitize(name)} has no column {sanitize(column)[:_SHOWN]!r}; "
                f"columns: {shown}"
            )
        return at, matches[0]
    labels = columns.labels if columns else ()
    if len(labels) != 1:
        raise ConfigError(
            f"{sanitize(name)}: columns {shown}; set data.label to one of them, e.g. "
            f"data.label={sanitize(name)}:{sanitize(labels[0] if labels else 'COLUMN')}"
        )
    return at, header.index(labels[0])


def _labelled(
    rows: Iterable[Sequence[Any]],
    file: int,
    label: int,
    split: int | None,
    known: dict[Any, int | str],
) -> Iterator[LabelRow]:
    for row in rows:
        if len(row) <= max(file, label) or row[file] in ("", None):
            continue
        value = row[label]
        declared = row[split] if split is not None and len(row) > split else None
        of_row = split_named(declared) if isinstance(declared, str) else None
        if isinstance(value, list):
            yield LabelRow(str(row[file]), label_of(cast(Any, value)), of_row)
            continue
        key = (type(value), value) if not isinstance(value, dict) else None
        if key is None or key not in known:
            known[key] = _text_label(value) if isinstance(value, _Cell) else label_of(value)
        yield LabelRow(str(row[file]), known[key], of_row)


class _Cell(str):
    """Text of a CSV file, which may mean a number."""


def _text_label(text: str) -> int | str:
    if not text.strip():
        return NO_LABEL
    return NO_LABEL if text.strip() == "-1" else parse_label(text)


def _csv_rows(name: str, text: str) -> Iterator[list[Any]]:
    """The header, then the rows, of a CSV file."""
    columns = columns_of(name, text[: 1 << 16].encode())
    reader = csv.reader(io.StringIO(text), delimiter=columns.delimiter if columns else ",")
    try:
        for number, row in enumerate(reader):
            BUDGET.check(sanitize(name), LABELS_REMEDY, label_rows=number)
            yield [_Cell(text) for text in row] if number else row
    except csv.Error as error:
        raise DataError(
            f"{sanitize(name)} is not a readable CSV file ({error}); {LABELS_REMEDY}"
        ) from None


def _json_rows(name: str, text: str) -> Iterator[list[Any]]:
    """The header, then the rows, of JSON lines: objects with the keys of the first one."""
    header: list[str] | None = None
    for number, line in enumerate(io.StringIO(text)):
        BUDGET.check(sanitize(name), LABELS_REMEDY, label_rows=number)
        if not line.strip():
            continue
        row = parse_json(line.encode(), f"{sanitize(name)}, line {number + 1},", LABELS_REMEDY)
        if not isinstance(row, dict):
            raise DataError(
                f"{sanitize(name)}, line {number + 1}, is no JSON object; {LABELS_REMEDY}"
            )
        values = cast(Mapping[str, Any], row)
        if header is None:
            header = list(values)
            yield header
        yield [values.get(key) for key in header]


def is_stylegan(data: bytes) -> bool:
    """Whether a ``dataset.json`` is one of StyleGAN's tools, with labels or without."""
    try:
        document = parse_json(data, STYLEGAN, "")
    except DataError:
        return False
    return isinstance(document, dict) and isinstance(
        cast(Mapping[str, Any], document).get("labels", 0), list | dict | None
    )


def _stylegan_rows(name: str, data: bytes) -> Iterator[LabelRow]:
    document: Any = parse_json(data, sanitize(name), LABELS_REMEDY)
    labels: Any = document.get("labels") if isinstance(document, dict) else None
    pairs: Any = labels.items() if isinstance(labels, dict) else labels or ()
    for pair in pairs:
        if (
            not isinstance(pair, list | tuple)
            or len(cast(Any, pair)) != 2
            or not isinstance(pair[0], str)
        ):
            raise DataError(
                f'{sanitize(name)}: expected {{"labels": [["00000/0.png", 6], ...]}}; {LABELS_REMEDY}'
            )
        yield LabelRow(pair[0], label_of(pair[1]))
