"""Order of the names of classes where a source declares none."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

_DIGITS = 18
"""Longer names of digits are texts, not numbers."""

_SHOWN = 80
"""Characters of a name that are shown."""


def class_number(name: str) -> int | None:
    """The number that a name stands for; None if it is no number of ASCII digits.

    >>> class_number("07"), class_number("7a")
    (7, None)
    """
    is_number = name.isascii() and name.isdecimal() and len(name) <= _DIGITS
    return int(name) if is_number else None


def class_with_number(number: float, names: Sequence[str]) -> int | None:
    """Number of the class whose name is this number; None if none is, or if it is the class of this number.

    >>> class_with_number(2, ("1", "2")), class_with_number(1, ("0", "1")), class_with_number(0, ("1",))
    (1, None, None)
    """
    same = [own for own, name in enumerate(names) if class_number(name) == number]
    return same[0] if same and number not in same else None


def in_class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sort names of classes: by their numbers if all of them are numbers, else as texts.

    >>> in_class_order(["10", "9", "1"]), in_class_order(["10", "9", "a"])
    (('1', '9', '10'), ('10', '9', 'a'))
    """
    by_text = sorted(names)
    numbers = [class_number(name) for name in by_text]
    if any(number is None for number in numbers):
        return tuple(by_text)
    return tuple(sorted(by_text, key=lambda name: (class_number(name), name)))


def similar_names(names: Iterable[str]) -> str:
    """The first names that people may take for one class, as text; empty if there are none.

    They differ only in case, spaces, leading zeros or Unicode form.

    >>> similar_names(["Dog", "cat", "dog "]), similar_names(["01", "1"]), similar_names(["a", "b"])
    ("'Dog' and 'dog '", "'01' and '1'", '')
    """
    first: dict[str | int, str] = {}
    for name in names:
        number = class_number(name)
        plain = unicodedata.normalize("NFKC", name).strip().casefold() if number is None else number
        if (other := first.setdefault(plain, name)) != name:
            return f"{other[:_SHOWN]!a} and {name[:_SHOWN]!a}"
    return ""
