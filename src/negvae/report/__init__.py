"""Pages, charts, tables and image strips. Each module is imported when it is used: this package imports nothing."""
