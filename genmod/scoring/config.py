"""The recipe's ``score``: which rows are scored, and how the work is divided."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from genmod import storage
from genmod.budget import BUDGET
from genmod.config import Config
from genmod.manifest import Split
from genmod.numerics import NumericsMode
from genmod.scoring.ood_scores import CalibrationConfig


class ScoreConfig(Config):
    """The recipe's ``score``: the rows to score, and how the work is divided."""

    split: Split = "val"
    """The split to score."""
    max_rows: int | None = Field(default=None, gt=0, le=BUDGET.rows)
    """Number of rows to score, drawn from the split by the seed; if not given, all rows."""
    micro_batch: int = Field(default=50, gt=0, le=65_536)
    """Rows per forward pass. Affects results by rounding. Batches are filled up to it, or up to
    ``rows_per_task`` if that is less."""
    rows_per_task: int = Field(default=250, gt=0, le=BUDGET.shard_rows)
    """Rows per task and Parquet file; a shard with more rows is divided."""
    workers: int = Field(default=1, gt=0, le=65_536)
    """Actors, each with the model on its own device. They do not affect results."""
    weights: Literal["ema", "raw"] = "ema"
    """``ema``: the moving average; ``raw``: the trained weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: cuda if the recipe's ``cluster.gpus_per_worker`` is above 0."""
    data: storage.Url | None = None
    """URL of another data set with the same image format to score, e.g. for OOD detection; if not given, the
    recipe's own. Results depend on its content, not on its URL."""
    calibration: CalibrationConfig | None = CalibrationConfig()
    """In-distribution rows that OOD scores are relative to; ``null`` for no OOD scores."""
    output: storage.OutputFolder = "scores"
    """Folder below the root, or a URL; each model has a subfolder. ``evaluate`` reads the default one."""
    deadline_s: float = Field(default=3600.0, gt=0, le=1e7)
    """Time limit of a task. A task beyond it is tried on another node, then in halves."""
    max_quarantined: int = Field(default=0, ge=0, le=BUDGET.rows)
    """Rows that may have no score because they cannot be read or scored (NaN, or past the deadline alone).
    With more of them, the scores of the others are published and the command exits with 1."""
    numerics: NumericsMode = "strict"
    """Which processors may work on the scores of one split; as for ``sample.numerics``."""

    @property
    def batch_rows(self) -> int:
        """Rows per forward pass, fillings included."""
        return min(self.micro_batch, self.rows_per_task)

    def result(self) -> dict[str, Any]:
        """The fields that the scores depend on, for the fingerprint."""
        exclude = {
            "workers", "device", "data", "output", "deadline_s", "max_quarantined", "numerics"
        }  # fmt: skip
        values = self.model_dump(mode="json", exclude=exclude)
        return values | ({"numerics_mode": "portable"} if self.numerics == "portable" else {})
