"""Measurements of negvae side by side with its peers and with the machine's own matrix-product rate."""
