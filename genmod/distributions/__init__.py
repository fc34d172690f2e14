"""Probability distributions: of latents and of pixels, with exact log densities and addressed draws."""
