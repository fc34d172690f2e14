"""Drift: whether new rows of a source look like the rows that a model was made for.

Under exchangeability with calibration rows, which no model was trained on, each of the pooled rows is as
likely as any other to have one of the most extreme scores. So the number of new rows among the k most extreme
ones is hypergeometric, and its tail is an exact p-value, for any model. Three scores are tested at several k,
and the smallest p-value is multiplied by the number of tests (Bonferroni): bits per dimension, high (unlikely
images) and low (simple images), and the corrected score (:mod:`genmod.scoring.ood_scores`), high. Letters: M
calibration rows, N new rows.
"""

from __future__ import annotations

import torch
from pydantic import Field
from scipy.stats import hypergeom
from torch import Tensor

from genmod.config import Config
from genmod.manifest import ImageSpec
from genmod.scoring.ood_scores import COMPRESSED_COLUMN, BitsPerDim
from genmod.scoring.table import Scores

TAILS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of the pooled rows that count as the most extreme ones."""


class Drift(Config):
    """How far new rows are from the calibration rows."""

    p_value: float = Field(ge=0, le=1)
    """Probability of rows as extreme as these, or more, without drift; corrected for all tests."""
    score: str = Field(max_length=100)
    """The score that shows the most."""
    rows: int = Field(ge=1)
    """New rows that were compared."""
    expected: float = Field(ge=0)
    """Number of new rows among the most extreme ones that is expected without drift."""
    found: int = Field(ge=0)
    """Number of new rows among the most extreme ones."""

    @property
    def text(self) -> str:
        """The finding in words."""
        return (
            f"{self.found} of {self.rows:,} new rows have an extreme {self.score}, {self.expected:.1f} are "
            f"expected; p = {self.p_value:.2g}"
        )


def measure_drift(known: Scores, new: Scores, spec: ImageSpec) -> Drift:
    """Compare new rows with calibration rows, scored by the same model with the same options.

    Args:
        known: M calibration rows, which the model was not trained on.
        new: N new rows.
        spec: image format.
    """
    sides = [_extremes(scores, spec) for scores in (known, new)]
    names = list(sides[0])
    tests = [
        _test(name, sides[0][name], sides[1][name], share) for name in names for share in TAILS
    ]
    most = min(tests, key=lambda test: test.p_value)
    return most.model_copy(update={"p_value": min(1.0, most.p_value * len(tests))})


def _extremes(scores: Scores, spec: ImageSpec) -> dict[str, Tensor]:
    """Scores by name; high is extreme."""
    bits = BitsPerDim(spec.dims, scores.label.measure, spec.levels)
    bits_N = bits.per_dim(scores.nats_B)
    corrected_N = bits.corrected(scores.nats_B, scores.column(COMPRESSED_COLUMN))
    return {
        "bits per dimension (high)": bits_N,
        "bits per dimension (low)": -bits_N,
        "corrected score": corrected_N,
    }


def _test(name: str, known_M: Tensor, new_N: Tensor, share: float) -> Drift:
    """How many new rows are among the most extreme share of all; of equal rows, known ones come first."""
    total = len(known_M) + len(new_N)
    most = max(1, round(share * total))
    is_new = torch.cat((torch.zeros(len(known_M)), torch.ones(len(new_N))))
    order = torch.argsort(torch.cat((known_M, new_N)), descending=True, stable=True)
    found = int(is_new[order[:most]].sum())
    p_value = float(hypergeom.sf(found - 1, total, len(new_N), most))
    expected = most * len(new_N) / total
    return Drift(p_value=p_value, score=name, rows=len(new_N), expected=expected, found=found)
