"""Metrics, intervals, trivial, references, plots. No torch."""
