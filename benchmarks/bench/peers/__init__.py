"""The peers with which negvae is compared.

This folder imports nothing of negvae and runs with any interpreter that has torch and the peer, because the peers'
version pins need environments of their own.
"""
