"""How layers and tensors run quickly on a CPU or GPU. A leaf: it knows no VAE."""
