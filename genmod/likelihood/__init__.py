"""Estimators of log p(x): pure functions over a model, each with its label."""
