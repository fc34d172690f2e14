"""Variational autoencoders."""

from genmod.models.vae.config import VAEConfig, VAESample, VAEScore
from genmod.models.vae.model import Model

__all__ = ["Model", "VAEConfig", "VAESample", "VAEScore"]
