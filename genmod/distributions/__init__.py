"""Distributions with log-densities and addressed draws."""
