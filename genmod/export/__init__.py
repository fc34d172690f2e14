"""Published models in formats of other programs, checked by running them."""
