"""Evaluation of models: measured metrics and the promotion gate."""
