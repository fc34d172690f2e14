"""Score tables: log-likelihoods of rows with labels and calibration."""
