"""Solvers that make images: pure functions over a model."""
