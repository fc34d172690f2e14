"""Options of the diffusion model: net, noise and objective, sampling."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from genmod.interface.options import (
    MAX_LEVELS,
    MAX_NIMG,
    MAX_WIDTH,
    FamilyConfig,
    Level,
    SampleOptions,
    Width,
)
from genmod.models.diffusion.preconditioning import PredictionType
from genmod.samplers.guidance import GuidedSolver
from genmod.samplers.schedule import TrainingNoise


class DiffusionConfig(FamilyConfig):
    """The net, the noise levels of training, and the range of noise levels of the model."""

    unshuffle: int = Field(default=1, ge=1, le=64)
    """Side of the pixel squares that the stem folds into channels, 1 for none; 2 is about 4 times cheaper."""
    widths: tuple[Width, ...] = Field(default=(64, 128, 128), min_length=1, max_length=MAX_LEVELS)
    """Channels of each level, finest first; each level after the first halves height and width."""
    blocks: int = Field(default=2, ge=1, le=64)
    """Residual blocks of each level, on the way down and on the way up."""
    attention: tuple[Level, ...] = Field(default=(1,), max_length=MAX_LEVELS)
    """Levels with self-attention, counted from 0, the finest; () for none."""
    head: int = Field(default=32, ge=1, le=MAX_WIDTH)
    """Channels of each attention head; divides the widths of those levels."""
    embedding: int = Field(default=256, ge=2, le=MAX_WIDTH)
    """Length of the vector that carries noise level and class to every block."""
    sigma_data: float | None = Field(default=None, gt=0, le=1e3)
    """Standard deviation of the data in network units; measured on the training data if not given."""
    sigma_min: float = Field(default=0.002, ge=1e-6, le=1e6)
    """Smallest noise level of the model; half a bin of an 8-bit pixel is 0.0039."""
    sigma_max: float = Field(default=80.0, ge=1e-6, le=1e6)
    """Largest noise level of the model, where sampling starts from the prior."""
    objective: Literal["quality", "likelihood", "consistency"] = "quality"
    """Training objective. ``quality``: EDM's weights of noise levels. ``likelihood``: the variational bound
    on log P(pixels), usually with ``fourier: [6]``, ``sigma_min: 0.0013`` and ``sigma_max: 12``.
    ``consistency``: for a model that distills another, to sample with 2 network evaluations; it has no
    density."""
    halve_nimg: int = Field(default=50_000, ge=1, le=MAX_NIMG)
    """With ``consistency``: images after which the distance between noise levels is halved."""
    prediction: PredictionType = "edm"
    """What the net predicts: EDM's mixture of image and noise, or DDPM's ``eps``, ``x0`` or ``v``."""
    noise: TrainingNoise = TrainingNoise()
    """Distribution of the noise levels of training; ``likelihood`` always has a uniform one in ln sigma."""
    fourier: tuple[Annotated[int, Field(ge=-8, le=24)], ...] = Field(default=(), max_length=32)
    """n of the Fourier features sin and cos(2^n pi x); n = 6 has a period of 4 pixel values."""
    label_drop: float = Field(default=0.1, ge=0, lt=1)
    """Share of rows trained without their label, for classifier-free guidance and for p(x)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for level in self.attention:
            if not 0 <= level < len(self.widths):
                raise ValueError(
                    f"attention must name levels below {len(self.widths)}, got {level}"
                )
            if self.widths[level] % self.head:
                raise ValueError(
                    f"head must divide the width of level {level} ({self.widths[level]}), got {self.head}"
                )
        if self.sigma_min >= self.sigma_max:
            raise ValueError("sigma_min must be below sigma_max")
        self.noise.check_range(self.sigma_min, self.sigma_max)
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Two levels of 8 channels, attention on the coarser."""
        return cls(widths=(8, 8), blocks=1, attention=(1,), head=4, embedding=8)

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """Trained for likelihood; DDPM's predictions and schedules; a consistency function."""
        ddpm = {"sigma_min": 0.02, "sigma_max": 80.0}
        changes: tuple[dict[str, Any], ...] = (
            {"objective": "likelihood", "fourier": (2, 6), "sigma_max": 12.0},
            {"prediction": "eps", "noise": TrainingNoise(schedule="linear"), **ddpm},
            {"prediction": "x0", "noise": TrainingNoise(schedule="cosine"), **ddpm},
            {"prediction": "v", "noise": TrainingNoise(schedule="cosine"), **ddpm},
            {"objective": "consistency", "halve_nimg": 16},
        )
        return tuple(cls.tiny().model_copy(update=change) for change in changes)


class DiffusionSample(GuidedSolver, SampleOptions):
    """Sampling options: solver of the probability-flow equation, steps, guidance."""
