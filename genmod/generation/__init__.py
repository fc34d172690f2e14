"""Generation of synthetic datasets, whose images are addressed by index."""
