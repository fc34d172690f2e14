"""The limit on rejected inputs: ``data.max_quarantined``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from genmod.data.sharding.catalog import RejectedRow
from genmod.data.sources.config import DataConfig
from genmod.errors import DataError, sanitize

_NUMBERS = re.compile(r"\d+")


def exceeds_quarantine(data: DataConfig, rejected: int, rows: int) -> bool:
    """Whether the share of rejected inputs exceeds ``data.max_quarantined``."""
    return rejected > data.max_quarantined * rows


def count_reasons(rejected: Iterable[RejectedRow], most: int = 20) -> dict[str, int]:
    """Number of rejected inputs by reason, the most frequent first; names and numbers are left out.

    Of more than ``most`` reasons, the others are counted together.
    """
    kinds = Counter(_kind(reason) for _, _, reason in rejected)
    counts = dict(kinds.most_common(most))
    if len(kinds) > most:
        counts["for other reasons"] = kinds.total() - sum(counts.values())
    return counts


def _kind(reason: str) -> str:
    return _NUMBERS.sub("N", reason.partition(":")[0].partition(";")[0])[:80]


def check_quarantine(
    data: DataConfig, rejected: Iterable[RejectedRow], count: int, rows: int
) -> None:
    """Raise DataError if ``count`` rejected of ``rows`` inputs exceed ``data.max_quarantined``."""
    if exceeds_quarantine(data, count, rows):
        kinds, example = Counter[str](), ""
        for _, name, reason in rejected:
            kinds[_kind(reason)] += 1
            example = example or f"{sanitize(name)}: {reason}"
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3))
        rest = count - sum(count for _, count in kinds.most_common(3))
        raise DataError(
            f"{data.source}: {count} of {rows} inputs are rejected, more than "
            f"data.max_quarantined={data.max_quarantined:g} allows "
            f"({counts}{f', {rest} others' if rest else ''}); the first is {example}"
        )
