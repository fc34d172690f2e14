"""Tests of genmod that ship with it: estimators against truths in closed form, on the machine at hand."""
