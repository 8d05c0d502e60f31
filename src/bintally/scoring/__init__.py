"""Metrics, intervals, baselines, references, plots. No torch."""
