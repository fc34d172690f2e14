"""Order of the names of classes where a source declares none."""

from __future__ import annotations

from collections.abc import Iterable

_DIGITS = 18
"""Longer names of digits are texts, not numbers."""


def class_number(name: str) -> int | None:
    """The number that a name stands for; None if it is no number of ASCII digits.

    >>> class_number("07"), class_number("7a")
    (7, None)
    """
    is_number = name.isascii() and name.isdecimal() and len(name) <= _DIGITS
    return int(name) if is_number else None


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
