"""Lineage: what a dataset, model, score, report or decision was made from, and what was made with it."""
