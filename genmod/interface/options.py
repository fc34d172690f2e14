"""Options of a family that a recipe sets: base classes for configuration, sampling and scoring."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from pydantic import Field

from genmod.config import Config


class Options(Config):
    """What a family leaves to the recipe."""

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """Beside the usual, one for each option that changes what is done: for contract tests."""
        return ()


class SampleOptions(Options):
    """How to sample. Families subclass it with what they can do."""

    @property
    def draws_from_p(self) -> bool:
        """Whether images are draws from the model's p(x): not so with guidance, truncation, few steps."""
        return True

    @property
    def sampler(self) -> str:
        """Name for manifests and reports."""
        return "ancestral"

    def nfe_sweep(self) -> tuple[tuple[str, int, Self], ...]:
        """(Curve, calls of the net, options) from quick to fine; nothing if there is no choice."""
        return ()


class ScoreOptions(Options):
    """How to estimate log p. Families subclass it."""

    max_rows: int | None = Field(default=None, gt=0)
    """Score at most so many rows with this model; for estimators that take minutes a row."""

    @classmethod
    def tiny(cls) -> Self:
        """Options that take milliseconds a row and ask for a density: for contract tests."""
        return cls()

    @property
    def prepares(self) -> bool:
        """Whether :meth:`GenerativeModel.prepare_scores` has something to do before rows are scored."""
        return False

    @property
    def held_out_rows(self) -> int:
        """Rows of real data, of the split val, that it wants."""
        return 0

    def probe(self) -> tuple[Self, float]:
        """Options that do a small part of the work, and how many times longer these ones take."""
        return self, 1.0


class FamilyConfig(Options, ABC):
    """A family's own configuration, the recipe's ``model.<name>.net``."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """A real but small model that trains in milliseconds: for contract tests and the doctor."""
