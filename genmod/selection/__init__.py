"""Selection: a dataset version of the rows whose scores meet a condition."""
