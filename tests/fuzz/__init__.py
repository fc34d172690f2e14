"""Gives mutated documents to every reader of the product; see :mod:`tests.fuzz.__main__`."""
