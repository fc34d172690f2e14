"""Classes that a request asks for, by number or by name."""

from __future__ import annotations

from collections.abc import Sequence

from genmod.data.sources.class_names import class_with_number
from genmod.errors import DataError, did_you_mean, sanitize
from genmod.interface.model_store import ModelClasses
from genmod.manifest import ImageSpec

_SHOWN = 80


def class_numbers(labels: Sequence[int | str], spec: ImageSpec, classes: ModelClasses) -> list[int]:
    """Number of the class of each row.

    Args:
        labels: numbers (column ``label``) or names (column ``class``) of classes.
        spec: of the model's images.
        classes: of the model.

    Raises:
        DataError: the model has no such class, or a number is also the name of another class.
    """
    names = classes.class_names
    if not spec.classes:
        raise DataError("the model has no classes; leave columns label and class out")
    numbers = {name: number for number, name in enumerate(names)}
    found: list[int] = []
    for label in labels:
        if isinstance(label, str):
            found.append(_named(label, numbers))
            continue
        if (other := class_with_number(label, names)) is not None:
            own = f" and the number of class {names[label]!r}" if 0 <= label < len(names) else ""
            raise DataError(
                f"label is {label}, which is the name of class number {other}{sanitize(own)}; send column "
                "class with the name in place of column label"
            )
        if not 0 <= label < spec.classes:
            raise DataError(f"label is {label}, expected 0 to {spec.classes - 1}; correct it")
        found.append(label)
    return found


def _named(name: str, numbers: dict[str, int]) -> int:
    if not numbers:
        raise DataError("the model's classes have no names; send column label with numbers")
    if name not in numbers:
        hint = sanitize(did_you_mean(name[:_SHOWN], numbers))[:200]
        raise DataError(f"the model has no class {sanitize(name[:_SHOWN])!r}; {hint}")
    return numbers[name]
