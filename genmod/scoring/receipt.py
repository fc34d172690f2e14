"""The receipt of one table of scores, and the rows that have none: ``quarantine.parquet``."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from genmod.budget import BUDGET
from genmod.config import Config
from genmod.data.format.index import QUARANTINE
from genmod.data.format.keys import MAX_KEY_LENGTH
from genmod.data.format.shards import quarantine_file
from genmod.errors import sanitize
from genmod.manifest import FileEntry, Manifest
from genmod.scoring.label import ScoreLabel
from genmod.scoring.moments import RunningMoments

REASON_CHARS = 300
"""Characters of a reason that are kept."""


class UnscoredRow(Config):
    """A row without a score."""

    key: str = Field(max_length=MAX_KEY_LENGTH)
    index: int = Field(ge=0, le=BUDGET.rows)
    """In its split."""
    reason: str = Field(max_length=REASON_CHARS)

    @classmethod
    def of(cls, key: str, index: int, reason: str) -> UnscoredRow:
        """The row with its reason as one line of a limited length."""
        return cls(key=key, index=index, reason=sanitize(" ".join(reason.split()))[:REASON_CHARS])


class ScoreReceipt(Config):
    """The receipt of one table of scores. Written create-if-absent, so the first of two writers wins."""

    fingerprint: str
    file: FileEntry | None
    """None if no row has a score."""
    rows: int = Field(ge=0, le=BUDGET.shard_rows)
    """Rows with a score."""
    nats: RunningMoments
    label: ScoreLabel | None
    """None if no row has a score."""
    noise: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Sum of the squared Monte Carlo standard errors of the rows, in nats^2."""
    prepared: dict[str, float] = {}
    """Numbers that the setup task measured."""
    rare: dict[str, int] = {}
    """How many rows have a p below :data:`~genmod.scoring.ood_scores.RARE_P`, by column."""
    rejected: tuple[UnscoredRow, ...] = Field(default=(), max_length=BUDGET.shard_rows)
    """Rows that have no score."""
    numerics: str = Field(default="", max_length=200)
    """Numeric class of the worker, see :mod:`genmod.numerics`."""


def write_unscored(root: str, rejected: Sequence[UnscoredRow]) -> tuple[FileEntry, ...]:
    """Write ``quarantine.parquet``, if any row has no score. Returns its entry, or nothing."""
    rows = [(row.key, str(row.index), row.reason) for row in rejected]
    return (quarantine_file(root, rows),) if rows else ()


def table_entries(manifest: Manifest) -> tuple[FileEntry, ...]:
    """The tables that a manifest of scores lists, in the order of their rows."""
    return tuple(entry for entry in manifest.files if entry.path != QUARANTINE)
