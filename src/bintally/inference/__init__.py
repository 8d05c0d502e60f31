"""A saved model at work: runtime, predictor, export."""
