"""Costs of a model: counted operations, and measured times of calls."""
