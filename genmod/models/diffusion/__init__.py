"""Diffusion models."""

from genmod.models.diffusion.model import DiffusionConfig, DiffusionSample, DiffusionScore, Model

__all__ = ["DiffusionConfig", "DiffusionSample", "DiffusionScore", "Model"]
