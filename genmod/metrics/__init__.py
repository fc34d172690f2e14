"""Quality metrics of samples in fitted feature spaces, with intervals."""
