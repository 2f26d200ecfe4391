"""Fast ways to run layers and tensors on a CPU or GPU. This package imports nothing else of negvae and knows no VAE."""
