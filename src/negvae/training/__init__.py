"""Losses as pure functions, one loop, exact resume."""
