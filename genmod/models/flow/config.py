"""Options of the normalizing flow: splines and nets, sampling, scoring."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from genmod.interface.options import (
    MAX_LEVELS,
    MAX_WIDTH,
    FamilyConfig,
    SampleOptions,
    ScoreOptions,
    Width,
)


class FlowConfig(FamilyConfig):
    """The chain of splines, and the nets that compute their knots."""

    transforms: int = Field(default=4, ge=1, le=64)
    """Transforms in the chain. The first uses the pixels in raster order, the others in shuffled orders."""
    order: Literal["coupling", "autoregressive"] = "coupling"
    """Dimensions that a spline may depend on. ``autoregressive``: all dimensions before it; a draw takes D
    passes of each net. ``coupling``: the second half depends on the first half; a draw takes 2."""
    bins: int = Field(default=8, ge=2, le=256)
    """K, number of pieces of each spline."""
    widths: tuple[Width, ...] = Field(default=(128, 128), min_length=1, max_length=MAX_LEVELS)
    """Lengths of the hidden layers of each net."""
    embedding: int = Field(default=16, ge=1, le=MAX_WIDTH)
    """Length of a class's embedding, for data with labels."""

    @classmethod
    def tiny(cls) -> Self:
        """Two transforms of 4 pieces, one hidden layer of 16."""
        return cls(transforms=2, bins=4, widths=(16,), embedding=4)

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """The tiny flow with the autoregressive order."""
        return (cls.tiny().model_copy(update={"order": "autoregressive"}),)


class FlowSample(SampleOptions):
    """Sampling has no options: a uniform draw goes through the inverse splines."""

    @property
    def sampler(self) -> str:
        """``inverse``: the only sampler."""
        return "inverse"


class FlowScore(ScoreOptions):
    """Options of log p: a bound on the probability of the pixels, or the density at one point."""

    dequantise: Literal["uniform", "none"] = "uniform"
    """``uniform`` bounds the probability of the pixels; ``none`` is the density at the middle of the bins."""
    k: int = Field(default=1, ge=1, le=1 << 24)
    """With ``uniform``: draws within the logarithm; a larger k gives a tighter bound."""
    repeats: int = Field(default=8, ge=1, le=1 << 20)
    """With ``uniform``: number of bounds that are averaged."""
    chunk: int = Field(default=1024, ge=1, le=1 << 24)
    """Rows of one call of the nets; it decides memory, not the result."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.k * self.repeats < 2:
            raise ValueError("repeats must be at least 2 with k = 1, for a standard error")
        return self

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """The importance-weighted bound, and the density at a point."""
        return cls(k=4, repeats=3), cls(dequantise="none")
