"""The demo warehouse: bins that the project renders itself, so that a fresh machine needs no data. No torch."""
