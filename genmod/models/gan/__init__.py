"""Generative adversarial networks."""

from genmod.models.gan.config import GanConfig
from genmod.models.gan.model import GanSample, GanScore, Model

__all__ = ["GanConfig", "GanSample", "GanScore", "Model"]
