"""Inference with a saved model: runtime, predictor, export."""

import os

# Read when ONNX Runtime is imported: without it, it sends its makers what it runs on and an identifier, which it keeps
# in the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
