"""Labels that are written as text: numbers or names of classes, never both in one source."""

from __future__ import annotations

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE

from genmod.budget import BUDGET
from genmod.data.sources.source import BAD_LABEL, NO_LABEL
from genmod.errors import DataError, sanitize

MAX_LABEL = (1 << 31) - 1
"""Largest class number."""

_WHOLE = re.compile(r"[+-]?[0-9]+(?:\.0*)?\Z")
_SHOWN = 60


def parse_label(text: str) -> int | str:
    """Class number or class name of a text; ``BAD_LABEL`` for an empty text and for impossible numbers.

    >>> parse_label("7"), parse_label("7.0"), parse_label(" tabby cat "), parse_label("-3") == BAD_LABEL
    (7, 7, 'tabby cat', True)
    """
    text = text.strip()
    if not text or len(text) > BUDGET.name_chars:
        return BAD_LABEL
    if not _WHOLE.match(text):
        return text
    digits = text.partition(".")[0]
    return label_of(int(digits)) if len(digits) < 20 else BAD_LABEL


def label_of(value: object) -> int | str:
    """Label of a JSON value: a number, a name, a list of one of these, or nothing."""
    if isinstance(value, list) and len(value) == 1:  # type: ignore[arg-type]
        value = value[0]  # type: ignore[index]
    if value is None or value == "":
        return NO_LABEL
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return int(value) if NO_LABEL <= value <= MAX_LABEL else BAD_LABEL
    if isinstance(value, str) and value.strip():
        return value.strip() if len(value) <= BUDGET.name_chars else BAD_LABEL
    return BAD_LABEL


class LabelKinds:
    """Refuses a source whose labels are partly numbers and partly names."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._first: dict[type, str] = {}

    @property
    def is_labelled(self) -> bool:
        """Whether any input has a label."""
        return bool(self._first)

    def check(self, label: int | str, name: str) -> None:
        """Note the label of an input. DataError if an earlier one was of the other kind."""
        kind = type(label)
        if kind in self._first or (kind is int and label < 0):  # type: ignore[operator]
            return
        self._first[kind] = f"{sanitize(str(label))[:_SHOWN]!r} of {sanitize(name)[:_SHOWN]}"
        if len(self._first) == 2:
            raise DataError(
                f"{self._source}: labels are numbers ({self._first[int]}) and names ({self._first[str]}); "
                "write all as numbers or all as names"
            )


def text_encoding(data: bytes) -> str:
    """Encoding of a text file: UTF-8, or UTF-16 if it starts with its mark, as spreadsheets write it."""
    return "utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"
