"""Calibration, metrics with intervals, baselines, the audit and figures. No torch."""
