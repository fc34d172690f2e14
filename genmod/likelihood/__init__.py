"""Estimators of log p(x): pure functions over a model's networks; each result carries its label."""
