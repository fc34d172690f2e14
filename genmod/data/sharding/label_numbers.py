"""Numbers the labels of a source: class names in the order of their first occurrence, numbers as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from genmod.budget import BUDGET
from genmod.data.sources.class_names import in_class_order
from genmod.data.sources.source import LABEL_REASONS, NO_LABEL
from genmod.errors import DataError


class LabelNumbers:
    """The catalog's own numbers of the classes of one source.

    Args:
        source: ``KIND:WHERE``, for errors.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._numbers: dict[str, int] = {}
        self._largest = NO_LABEL
        self.bad = Counter[str]()
        """Rows whose label is of no class, by the reason; without those that have none."""

    def number(self, label: int | str) -> int:
        """The number of a label. DataError if there are too many class names."""
        if isinstance(label, str):
            number = self._numbers.setdefault(label, len(self._numbers))
            if number >= BUDGET.classes:
                raise DataError(
                    f"{self._source}: more than {BUDGET.classes:,} class names; check the labels, or "
                    "ignore them with data.labels=false"
                )
            return number
        self._largest = max(self._largest, label)
        if label < NO_LABEL:
            self.bad[LABEL_REASONS[label]] += 1
        return label

    def names(self, declared: Sequence[str]) -> tuple[str, ...]:
        """Names of the classes in the declared order, else sorted; empty if labels are numbers."""
        if not self._numbers:
            return ()
        return (*declared, *in_class_order(self._numbers.keys() - set(declared)))

    def count(self, declared: Sequence[str]) -> int:
        """Number of classes according to the labels; 0 without labels."""
        return len(self.names(declared)) or self._largest + 1

    def places(self, class_names: Sequence[str]) -> Sequence[int]:
        """The position in ``class_names`` of each number."""
        place = {name: position for position, name in enumerate(class_names)}
        return [place[name] for name in self._numbers]
