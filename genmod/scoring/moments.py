"""Mean and standard error of numbers that arrive in parts. Letters: B rows."""

from __future__ import annotations

import math
from typing import Self

import torch
from pydantic import Field, FiniteFloat
from torch import Tensor

from genmod.config import Config


class RunningMoments(Config):
    """Count, mean and sum of squared deviations of numbers; parts can be merged.

    >>> parts = RunningMoments.of(torch.tensor([1.0, 2.0])), RunningMoments.of(torch.tensor([6.0]))
    >>> parts[0].merged(parts[1])
    RunningMoments(n=3, mean=3.0, squares=14.0)
    """

    n: int = Field(default=0, ge=0)
    mean: FiniteFloat = 0.0
    squares: FiniteFloat = Field(default=0.0, ge=0)
    """Sum of squared deviations from the mean."""

    @classmethod
    def of(cls, value_B: Tensor) -> Self:
        """The moments of a tensor's values."""
        value_B = value_B.to(torch.float64)
        if not len(value_B):
            return cls()
        mean = value_B.mean()
        return cls(n=len(value_B), mean=float(mean), squares=float((value_B - mean).square().sum()))

    def merged(self, other: Self) -> Self:
        """The moments of both parts together (Chan, Golub and LeVeque 1983, Eq. 2.1)."""
        n = self.n + other.n
        if not n:
            return self
        delta = other.mean - self.mean
        squares = self.squares + other.squares + delta * delta * self.n * other.n / n
        return type(self)(n=n, mean=self.mean + delta * other.n / n, squares=squares)

    @property
    def stderr(self) -> float:
        """Standard error of the mean over rows; 0 for fewer than 2."""
        return math.sqrt(self.squares / (self.n - 1) / self.n) if self.n > 1 else 0.0
