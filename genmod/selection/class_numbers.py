"""Numbers of classes in a condition, where names of classes are numbers too."""

from __future__ import annotations

from collections.abc import Sequence

from genmod.data.sources.class_names import class_number, class_with_number
from genmod.errors import ConfigError, sanitize
from genmod.selection.expression import Comparison


def check_class_number(comparison: Comparison, value: float, class_names: Sequence[str]) -> None:
    """Check that a comparison with the column ``label`` means one thing.

    Args:
        comparison: of the column ``label``.
        value: that it is compared with.
        class_names: of the dataset; empty if classes have none.

    Raises:
        ConfigError: compared by their names, which are numbers, other classes would meet the condition.
    """
    if comparison.symbol in ("=", "!="):
        unclear = class_with_number(value, class_names)
    else:
        differ = (n for n, name in enumerate(class_names) if _differs(comparison, n, name))
        unclear = next(differ, None)
    if unclear is None:
        return
    name = class_names[unclear]
    choice = f"class = {sanitize(name)!r}"
    if comparison.symbol not in ("=", "!="):
        advice = f"name the classes, e.g. {choice}"
    elif value in range(len(class_names)):
        advice = f"write {choice} or class = {sanitize(class_names[int(value)])!r}"
    else:
        advice = f"write {choice}"
    raise ConfigError(
        f"condition: {comparison}: class number {unclear} is called {sanitize(name)!r}, so it is not clear "
        f"whether numbers or names are meant; {advice}"
    )


def _differs(comparison: Comparison, number: int, name: str) -> bool:
    """Whether a class meets a condition by its number or by its name, which is a number, but not by both."""
    called = class_number(name)
    return called is not None and comparison.is_met(called) != comparison.is_met(number)
