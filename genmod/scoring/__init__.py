"""Scoring: log-likelihoods of a data set's rows as tables, with OOD scores relative to calibration rows."""
