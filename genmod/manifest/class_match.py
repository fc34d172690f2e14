"""Matches the classes of two datasets, or of a dataset and a model, by name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from genmod.errors import ConfigError, sanitize

_LISTED = 5


@dataclass(frozen=True)
class Classes:
    """The classes of a dataset or model."""

    owner: str
    """What they belong to, for errors, e.g. ``model vae`` or the URL of a dataset."""
    count: int
    names: tuple[str, ...] = ()
    """Empty if the classes have numbers only."""

    def __str__(self) -> str:
        if not self.names:
            return f"{self.count} classes without names" if self.count else "no classes"
        text = ", ".join(sanitize(name[:80]) for name in self.names[:_LISTED])
        return f"the classes {text}{', ...' if len(self.names) > _LISTED else ''}"


def match_classes(
    classes: Classes, target: Classes, used: Collection[int] | None = None
) -> tuple[int, ...]:
    """Number in ``target`` of each class, by name; by number if neither has names.

    Args:
        classes: of the data that is read.
        target: of the model, or of the data that it is read together with.
        used: numbers of the classes that have rows; all if not given. Others may be unknown to ``target``.

    Returns:
        the number of each class in ``target``, -1 for a class that it lacks; empty if all numbers are equal.

    Raises:
        ConfigError: only one of them has names, or ``target`` lacks a class that has rows.
    """
    if classes.names == target.names and (classes.names or classes.count <= target.count):
        return ()
    if not classes.names or not target.names:
        raise ConfigError(
            f"{classes.owner} has {classes}, {target.owner} has {target}; classes are matched by name: "
            "make both datasets from labels of the same kind"
        )
    numbers = {name: number for number, name in enumerate(target.names)}
    matched = tuple(numbers.get(name, -1) for name in classes.names)
    known = range(len(matched)) if used is None else used
    missing = [
        name for number, name in enumerate(classes.names) if matched[number] < 0 and number in known
    ]
    if missing:
        raise ConfigError(
            f"{classes.owner} has {classes}, {target.owner} has {target}; it lacks class "
            f"{sanitize(missing[0][:80])!r}: leave the images of that class out"
        )
    return matched
