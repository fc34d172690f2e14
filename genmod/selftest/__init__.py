"""Self-tests that ship with genmod: estimators of log p checked against densities in closed form."""
