"""Monitors of training: validation, sample diversity, latent use."""
