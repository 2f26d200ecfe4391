"""Pages, charts, tables and image strips. Each module is imported where it is used: this package imports nothing."""
