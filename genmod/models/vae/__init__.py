"""Variational autoencoders."""

from genmod.models.vae.model import Model, VAEConfig, VAESample, VAEScore

__all__ = ["Model", "VAEConfig", "VAESample", "VAEScore"]
