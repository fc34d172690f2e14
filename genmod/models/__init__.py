"""Families of generative models. The folder is the registry: one file, one family."""
