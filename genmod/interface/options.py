"""Options of a family that a recipe sets: base classes for configuration, sampling and scoring."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from pydantic import Field

from genmod.config import Config


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

    max_rows: int | None = Field(default=None, gt=0)
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
