"""Every path of dvc.yaml, here and nowhere else."""

from pathlib import Path

OUT_FOLDERS = ("data/", "models/", "metrics/")  # of what stages hand to each other

BINS = Path("data/bins")
CORRECTIONS = Path("data/corrections.csv")  # of no stage: `bintally audit --accept` writes it
SPLITS = Path("data/splits.csv")
ENCODED = Path("data/encoded")
QUALITY = Path("data/quality.csv")
LOG_PROBABILITIES = Path("data/log_probabilities.npy")
EVIDENCE = Path("data/evidence.npy")
PREDICTIONS = Path("data/predictions.csv")
MODELS = Path("models")  # train writes the model, calibrate how to read what it says
MODEL_FILES = ("model.safetensors", "card.json", "calibration.json")

QUALITY_METRICS = Path("metrics/quality.json")
TRAIN_METRICS = Path("metrics/train.json")
VALIDATION_METRICS = Path("metrics/validation.json")
TEST_METRICS = Path("metrics/test.json")
AUDIT_METRICS = Path("metrics/audit.json")
BENCHMARK = Path("metrics/benchmark.json")
BENCHMARK_TABLE = Path("metrics/benchmark.md")

TRAINING_CURVES = Path("plots/training")
CONFUSION = Path("plots/confusion.csv")
CONFUSION_FIGURE = Path("plots/confusion.png")
PER_CLASS = Path("plots/per_class.csv")
RISK = Path("plots/risk.csv")
RELIABILITY = Path("plots/reliability.csv")
EXAMPLES_FIGURE = Path("plots/examples.png")
AUDIT_CURVES = Path("plots/audit.csv")
AUDIT_FIGURE = Path("plots/audit.png")
BENCHMARK_FIGURE = Path("plots/benchmark.png")
TUNE = Path("plots/tune")  # of no stage: `bintally tune` writes it
