"""What negvae is measured against.

This folder imports nothing of negvae and runs with any interpreter that has torch and the peer: the peers'
pins need environments of their own.
"""
