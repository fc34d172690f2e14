"""Options of a family that a recipe sets: base classes for configuration, sampling and scoring."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Self

from pydantic import Field

from genmod.budget import BUDGET
from genmod.config import Config

MAX_NIMG = BUDGET.nimg
"""Images of a training, and of every interval within it."""

MAX_WIDTH = 65_536
"""Channels of a layer. The product of all widths is limited by the budget of parameters."""

MAX_LEVELS = 16
"""Levels of a net, of which each has half the sides of the one before."""

Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
"""Channels, or length of a dense layer."""

Level = Annotated[int, Field(ge=0, le=MAX_LEVELS - 1)]
"""Number of a level, the finest first."""


class Options(Config):
    """Options of a family, set in the recipe."""

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """Non-default values, at least one for each option that changes results: for contract tests."""
        return ()


class SampleOptions(Options):
    """Sampling options, the recipe's ``sample``. Families subclass it."""

    @property
    def draws_from_p(self) -> bool:
        """Whether images are draws from the model's p(x); false with guidance, truncation or few steps."""
        return True

    @property
    def sampler(self) -> str:
        """Name of the sampler, for manifests and reports."""
        return "ancestral"

    def nfe_sweep(self) -> tuple[tuple[str, int, Self], ...]:
        """(Curve, network evaluations, options) from fast to accurate; empty if there is no choice."""
        return ()


class ScoreOptions(Options):
    """Options of the log p estimator, the recipe's ``score``. Families subclass it."""

    max_rows: int | None = Field(default=None, gt=0, le=BUDGET.rows)
    """Largest number of rows scored with this model; for estimators that take minutes a row."""

    @classmethod
    def tiny(cls) -> Self:
        """Options that give a density in milliseconds a row: for contract tests."""
        return cls()

    @property
    def prepares(self) -> bool:
        """Whether :meth:`GenerativeModel.prepare_scores` must run before rows are scored."""
        return False

    @property
    def held_out_rows(self) -> int:
        """Rows of the val split that :meth:`GenerativeModel.prepare_scores` needs."""
        return 0

    def probe(self) -> tuple[Self, float]:
        """Options that do a small part of the work, and how many times longer the full work takes."""
        return self, 1.0


class FamilyConfig(Options, ABC):
    """A family's own configuration, the recipe's ``model.<name>.net``."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """A real but small model that trains in milliseconds: for contract tests and the doctor."""
