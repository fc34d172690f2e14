"""Diffusion models."""

from genmod.likelihood.diffusion import DiffusionScore
from genmod.models.diffusion.config import DiffusionConfig, DiffusionSample
from genmod.models.diffusion.model import Model

__all__ = ["DiffusionConfig", "DiffusionSample", "DiffusionScore", "Model"]
