"""Small models of the literature that use the layers, one in each file."""
