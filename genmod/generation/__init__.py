"""Synthetic images, addressed by index."""
