"""dvclive's curves, which `dvc plots` shows."""

import json
from pathlib import Path

from bintally.training.curves import TrainingCurves
from bintally.training.loop import EpochMetrics

EPOCHS = [EpochMetrics(0, 1.5, 0.25, 2.0, 1.25, 0.5), EpochMetrics(1, 1.0, 0.5, 1.0, 0.75, 0.625)]


def test_every_curve_has_a_row_for_each_epoch(tmp_path: Path) -> None:
    for _ in range(2):  # a resumed training reports its earlier epochs again
        curves = TrainingCurves(tmp_path / "plots")
        for metrics in EPOCHS:
            curves.on_epoch(metrics)
        curves.end()
    files = {path.relative_to(tmp_path / "plots/plots/metrics").as_posix(): path for path in tmp_path.rglob("*.tsv")}
    rows = {name: [line.split("\t") for line in path.read_text().splitlines()] for name, path in files.items()}
    assert rows == {
        "train/loss.tsv": [["step", "loss"], ["0", "1.5"], ["1", "1.0"]],
        "train/accuracy.tsv": [["step", "accuracy"], ["0", "0.25"], ["1", "0.5"]],
        "train/gradient_norm.tsv": [["step", "gradient_norm"], ["0", "2.0"], ["1", "1.0"]],
        "validation/loss.tsv": [["step", "loss"], ["0", "1.25"], ["1", "0.75"]],
        "validation/accuracy.tsv": [["step", "accuracy"], ["0", "0.5"], ["1", "0.625"]],
    }
    assert json.loads((tmp_path / "plots/metrics.json").read_text())["validation"] == {"loss": 0.75, "accuracy": 0.625}
