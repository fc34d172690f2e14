"""Layers and networks: torch alone, no idea of what they are used for."""
