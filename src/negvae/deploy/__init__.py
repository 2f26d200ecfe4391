"""A trained detector where others run it."""
