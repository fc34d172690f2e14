"""The published scores of one split, as a selection reads them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel, Field

from genmod import storage
from genmod.budget import BUDGET
from genmod.documents import validate
from genmod.errors import DataError
from genmod.manifest import FileEntry, Manifest, Split, read_checked
from genmod.scoring.label import ScoreLabel
from genmod.scoring.receipt import table_entries
from genmod.scoring.table import read_parquet

SCORE_AGAIN = "score again"
"""What to do about scores that cannot be used."""


class _Scored(BaseModel):
    """What a selection reads of the manifest of scores."""

    split: Split
    rows_of_files: tuple[int, ...] = Field(fail_fast=True)
    n: int = Field(ge=0, le=BUDGET.rows)
    quarantined: int = Field(default=0, ge=0, le=BUDGET.rows)


@dataclass(frozen=True)
class SplitScores:
    """The published scores of one split."""

    root: str
    manifest: Manifest

    @cached_property
    def scored(self) -> _Scored:
        """What the manifest says of its tables. DataError if they are not counted."""
        scored = validate(
            _Scored, self.manifest.metadata, "the scores of a dataset", self.root, SCORE_AGAIN
        )
        if len(scored.rows_of_files) != len(self.entries) or not self.entries:
            raise DataError(f"{self.root}: its manifest does not count its tables; {SCORE_AGAIN}")
        return scored

    @cached_property
    def entries(self) -> tuple[FileEntry, ...]:
        """The tables, in the order of their rows."""
        return table_entries(self.manifest)

    @property
    def split(self) -> Split:
        """The split whose rows were scored."""
        return self.scored.split

    @cached_property
    def label(self) -> ScoreLabel:
        """The label of the numbers. DataError if the manifest has none."""
        return ScoreLabel.from_metadata(self.manifest.metadata, self.root)

    def table(self, number: int) -> Any:
        """A table as a pyarrow Table. DataError if it is missing or damaged."""
        entry = self.entries[number]
        data = read_checked(self.root, entry, "run genmod verify to find all damaged files")
        url = storage.join_below(self.root, entry.path)
        return read_parquet(data, url, self.scored.rows_of_files[number])[0]
