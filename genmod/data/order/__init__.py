"""Order of rows: shuffled epochs, balanced classes, exact mixtures."""
