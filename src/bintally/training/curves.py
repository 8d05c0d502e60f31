"""The curves of a training as files that `dvc plots` reads, an out of the stage train."""

from dataclasses import asdict
from pathlib import Path

from dvclive.live import Live

from bintally.training.loop import EpochMetrics

CURVES = ("train/loss", "train/accuracy", "train/gradient_norm", "validation/loss", "validation/accuracy")


class TrainingCurves:
    """dvclive's files in ``folder``: a table for each curve and a summary of the last epoch."""

    def __init__(self, folder: Path) -> None:
        self._live = Live(str(folder), dvcyaml=None, report=None, save_dvc_exp=False, monitor_system=False)

    def on_epoch(self, metrics: EpochMetrics) -> None:
        values = asdict(metrics)
        self._live.step = metrics.epoch
        for name in CURVES:
            split, _, metric = name.partition("/")
            self._live.log_metric(name, values[metric] if metric in values else values[f"{split}_{metric}"])
        self._live.make_summary()

    def end(self) -> None:
        self._live.end()
