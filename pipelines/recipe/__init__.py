"""The recipe, its context and its checks."""
