"""Inference with a saved model: runtime, predictor, export."""
