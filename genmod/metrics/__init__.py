"""How good samples are, in declared features, with intervals."""
