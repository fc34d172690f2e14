"""Labels of synthetic images: the recipe's ``sample.labels``, resolved against a model's classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from genmod.data.sources.class_names import class_number
from genmod.errors import ConfigError, did_you_mean, sanitize
from genmod.generation.lanes import Lanes
from genmod.manifest import ImageSpec

_WORDS = ("auto", "balanced", "none")
_NAME, _NUMBER = "name:", "number:"
_KEY = "recipe: sample.labels"


@dataclass(frozen=True)
class LabelRequest:
    """The requested labels of a job, resolved against the model's classes.

    >>> [LabelRequest(classes=4, empty=(0,)).label(index) for index in range(5)]
    [1, 2, 3, 1, 2]
    """

    classes: int
    """Number of classes of the model; 0 without labels."""
    only: int | None = None
    """The only class to generate; all classes in turn if None."""
    empty: tuple[int, ...] = ()
    """Classes without training rows, which are not generated in turn with the others."""
    block: int = 0
    """Consecutive images of a class, where classes take turns by blocks; 0 where they do by images."""

    @property
    def rule(self) -> int | str:
        """The request in normal form: ``balanced``, ``by class``, ``none`` or a class number."""
        if self.only is not None:
            return self.only
        if self.block:
            return "by class"
        return "balanced" if self.classes else "none"

    @property
    def lanes(self) -> Lanes:
        """The lanes of the stream with these labels."""
        return Lanes(self.block, tuple(self._dealt_N.tolist())) if self.block else Lanes()

    @cached_property
    def _dealt_N(self) -> Tensor:
        """The classes that are generated in turn."""
        is_dealt_K = torch.ones(self.classes, dtype=torch.bool)
        is_dealt_K[list(self.empty)] = False
        return is_dealt_K.nonzero()[:, 0]

    def label(self, index: int) -> int | None:
        """Label of an image; None for a model without labels."""
        if not self.classes:
            return None
        if self.only is not None:
            return self.only
        return int(self._dealt_N[index // max(self.block, 1) % len(self._dealt_N)])

    def labels_B(self, index_B: Tensor) -> Tensor | None:
        """Labels of images, int64, on the device of ``index_B``; None for a model without labels."""
        if not self.classes:
            return None
        if self.only is not None:
            return torch.full_like(index_B, self.only)
        turn_B = index_B // max(self.block, 1) % len(self._dealt_N)
        return self._dealt_N.to(index_B.device)[turn_B] if self.empty else turn_B

    def description(self, class_names: Sequence[str] = ()) -> str:
        """The rule for people, with names of classes."""
        if not self.classes:
            return "no labels"
        if self.only is not None:
            return f"class {named(self.only, class_names)}"
        if not self.empty:
            return f"all {self.classes} classes in turn"
        return (
            f"{self.classes - len(self.empty)} of {self.classes} classes in turn, without those that have "
            f"no training rows: {listed(self.empty, class_names)}"
        )


def named(number: int, class_names: Sequence[str]) -> str:
    """Number of a class, with its name if it has another one.

    >>> named(1, ("cat", "dog")), named(1, ())
    ("1 ('dog')", '1')
    """
    name = class_names[number] if number < len(class_names) else str(number)
    return str(number) if name == str(number) else f"{number} ({sanitize(name[:80])!r})"


def listed(numbers: Sequence[int], class_names: Sequence[str], most: int = 5) -> str:
    """The first classes of a list, and how many more there are."""
    text = ", ".join(named(number, class_names) for number in numbers[:most])
    return f"{text} and {len(numbers) - most} more" if len(numbers) > most else text


def label_request(
    labels: int | str,
    spec: ImageSpec,
    class_names: Sequence[str] = (),
    empty: tuple[int, ...] = (),
) -> LabelRequest:
    """Resolve the recipe's ``sample.labels`` for a model.

    Args:
        labels: ``auto``, ``balanced``, ``none``, the name or number of a class, ``name:NAME``, ``number:N``.
        spec: of the model's images.
        class_names: names of the model's classes, if they have names.
        empty: classes without training rows.

    Raises:
        ConfigError: the model has no such class, or it is not clear which one is meant.
    """
    if labels == "auto":
        return LabelRequest(spec.classes, empty=empty)
    if not spec.classes:
        if labels == "none":
            return LabelRequest(0)
        raise ConfigError(
            f"{_KEY} is {labels!r}, but the model was trained without labels; use none or auto"
        )
    if labels in _WORDS and labels in class_names:
        raise ConfigError(
            f"{_KEY} is {labels!r}, which is also the name of a class; set name:{labels} for this class"
            + (", or auto for all classes" if labels == "balanced" else "")
        )
    if labels == "none":
        raise ConfigError(
            f"{_KEY} is 'none', but the model is class-conditional; use auto, balanced or a class"
        )
    if labels == "balanced":
        return LabelRequest(spec.classes, empty=empty)
    return LabelRequest(spec.classes, known_class(labels, spec, class_names, empty), empty)


def known_class(
    asked: int | str,
    spec: ImageSpec,
    class_names: Sequence[str] = (),
    empty: tuple[int, ...] = (),
    key: str = _KEY,
) -> int:
    """Number of a class that a model has learned.

    Args:
        asked: its name or number, ``name:NAME`` or ``number:N``.
        spec: of the model's images.
        class_names: names of the model's classes, if they have names.
        empty: classes without training rows.
        key: the recipe's key, for the error.

    Raises:
        ConfigError: the model has no such class, or it is not clear which one is meant.
    """
    number = _class_of(str(asked), spec.classes, class_names, key)
    if number in empty:
        raise ConfigError(
            f"{key} is {asked!r}, but class {named(number, class_names)} has no training rows, so the "
            "model has not learned it; ask for another class"
        )
    return number


def _class_of(text: str, classes: int, class_names: Sequence[str], key: str) -> int:
    """Number of the class that a text names. ConfigError if there is none, or if there are two."""
    kind = next((kind for kind in (_NAME, _NUMBER) if text.startswith(kind)), "")
    asked = text.removeprefix(kind)
    by_name = None if kind == _NUMBER else _named_class(asked, class_names)
    if kind and by_name is None:
        by_name = _named_class(text, class_names)  # a name that starts like this
    number = None if kind == _NAME else class_number(asked)
    by_number = number if number is not None and number < classes else None
    if by_name is not None and by_number is not None and by_name != by_number:
        raise ConfigError(
            f"{key} is {text}, which is the name of class number {by_name} and the number of class "
            f"{class_names[by_number]!r}; set {_NAME}{asked} or {_NUMBER}{by_number}"
        )
    found = by_number if by_name is None else by_name
    if found is not None:
        return found
    if kind == _NUMBER or (not kind and _is_integer(asked)):
        raise ConfigError(
            f"{key} is {text}, but the model has classes 0 to {classes - 1}"
            + (f", called {', '.join(class_names[:5])}" if class_names else "")
            + (", ..." if len(class_names) > 5 else "")
        )
    valid = [*_WORDS, *class_names]
    raise ConfigError(f"{key} is {text!r}; {did_you_mean(asked, valid)}")


def _named_class(text: str, class_names: Sequence[str]) -> int | None:
    """Number of the class of this name, or of the only one whose name is the same number."""
    if text in class_names:
        return class_names.index(text)
    number = class_number(text)
    same = [place for place, name in enumerate(class_names) if class_number(name) == number]
    return same[0] if number is not None and len(same) == 1 else None


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
