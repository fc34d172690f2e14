"""Generative adversarial networks."""

from genmod.models.gan.config import GanConfig, GanSample, GanScore
from genmod.models.gan.model import Model

__all__ = ["GanConfig", "GanSample", "GanScore", "Model"]
