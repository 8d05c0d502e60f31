"""What others report on the Amazon Bin Image Dataset, and answers that need no model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bintally.scoring.metrics import Counts


@dataclass(frozen=True)
class Row:
    """One line of the benchmark table."""

    name: str
    data: str
    """What it was measured on."""
    accuracy: float
    rmse: float | None
    """Of whole counts, in items; None where it is not known."""
    accuracy_high: float | None = None
    """Upper end where only a range is known; ``accuracy`` is its lower end then."""
    accuracy_interval: tuple[float, float] | None = None
    rmse_interval: tuple[float, float] | None = None

    def cells(self) -> tuple[str, str]:
        """Accuracy in per cent and RMSE as a table has them, with the range or the interval where there is one."""
        return (
            _cell(self.accuracy, self.accuracy_high, self.accuracy_interval, 100, 1),
            _cell(self.rmse, None, self.rmse_interval, 1, 3),
        )


# The challenge's figures: github.com/silverbottlep/abid_challenge; per class 0-5 its accuracies are
# 97.7 83.4 67.2 54.9 42.6 44.9 % and its RMSEs .187 .542 .710 .867 1.025 1.311, from which the 1-5 row follows.
# The study's: as printed, and with its two errors taken out (correct answers were divided by the number of
# batches, the RMSE was taken over the last batch alone).
REFERENCES = (
    Row("ABID challenge, ResNet34 from scratch", "36,032 real bins, counts 0-5", 0.5567, 0.930),
    Row("the same, counts 1-5 alone", "from its per-class figures", 0.545, 0.942, accuracy_high=0.563),
    Row("study, initial (lr 0.01, batch 64), as printed", "real bins, counts 1-5", 0.16, 1.432),
    Row("study, final (lr 0.0037, batch 32), as printed", "real bins, counts 1-5", 0.10, 0.866),
    Row("study, initial, corrected", "real bins, counts 1-5", 0.253, None, accuracy_high=0.269),
    Row("study, final, corrected", "real bins, counts 1-5", 0.316, None, accuracy_high=0.348),
)


def baselines(train: Counts, test: Counts, counts: Sequence[int]) -> list[Row]:
    """Majority class, mean and uniform guess, learned from the training counts and scored on the test counts.

    The mean is rounded for its accuracy and taken as it is for its RMSE; a uniform guess is scored by its
    expectation over all guesses.
    """
    values, numbers = np.unique(train, return_counts=True)
    majority = int(values[numbers.argmax()])
    mean = float(train.mean())
    errors = np.subtract.outer(np.asarray(counts), test)
    here = f"{len(test):,} test bins of this run"
    return [
        Row(f"always {majority} (majority class)", here, _mean(test == majority), _rms(test - majority)),
        Row(f"always {mean:.2f} (mean)", here, _mean(test == round(mean)), _rms(test - mean)),
        Row("uniform guess", here, _mean(errors == 0), _rms(errors)),
    ]


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.square(errors).mean()))


def _cell(
    value: float | None, high: float | None, interval: tuple[float, float] | None, scale: float, digits: int
) -> str:
    if value is None:
        return "not known"
    text = f"{value * scale:.{digits}f}"
    if high is not None:
        text += f"–{high * scale:.{digits}f}"
    if interval is not None:
        text += f" ({interval[0] * scale:.{digits}f}–{interval[1] * scale:.{digits}f})"
    return text
