"""Published results on the Amazon Bin Image Dataset, and baselines that need no model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bintally.scoring.decoding import decode_counts
from bintally.scoring.metrics import Counts, Floats


@dataclass(frozen=True)
class BenchmarkRow:
    """One line of the benchmark table."""

    name: str
    data: str
    """The bins it was measured on."""
    accuracy: float
    rmse: float | None
    """Of whole counts, in items; None: not known."""
    accuracy_high: float | None = None
    """Upper end where only a range is known; ``accuracy`` is then its lower end."""
    accuracy_interval: tuple[float, float] | None = None
    rmse_interval: tuple[float, float] | None = None

    def cells(self) -> tuple[str, str]:
        """Accuracy in per cent and RMSE as text, with the range or the interval if there is one."""
        accuracy = f"{self.accuracy * 100:.1f}"
        if self.accuracy_high is not None:
            accuracy += f"–{self.accuracy_high * 100:.1f}"
        if self.accuracy_interval:
            accuracy += " ({:.1f}–{:.1f})".format(*(end * 100 for end in self.accuracy_interval))
        rmse = "not known" if self.rmse is None else f"{self.rmse:.3f}"
        if self.rmse_interval:
            rmse += " ({:.3f}–{:.3f})".format(*self.rmse_interval)
        return accuracy, rmse


# The challenge's figures: github.com/silverbottlep/abid_challenge; per class 0-5 its accuracies are
# 97.7 83.4 67.2 54.9 42.6 44.9 % and its RMSEs .187 .542 .710 .867 1.025 1.311, from which the 1-5 row follows.
# The study's: as printed, and corrected for its two errors (correct answers were divided by the number of batches, the
# RMSE was taken over the last batch alone).
REFERENCES = (
    BenchmarkRow("ABID challenge, ResNet34 from scratch", "36,032 real bins, counts 0-5", 0.5567, 0.930),
    BenchmarkRow("the same, counts 1-5 alone", "from its per-class figures", 0.545, 0.942, accuracy_high=0.563),
    BenchmarkRow("study, initial (lr 0.01, batch 64), as printed", "real bins, counts 1-5", 0.16, 1.432),
    BenchmarkRow("study, final (lr 0.0037, batch 32), as printed", "real bins, counts 1-5", 0.10, 0.866),
    BenchmarkRow("study, initial, corrected", "real bins, counts 1-5", 0.253, None, accuracy_high=0.269),
    BenchmarkRow("study, final, corrected", "real bins, counts 1-5", 0.316, None, accuracy_high=0.348),
)


def baselines(train: Counts, test: Counts, counts: Sequence[int]) -> list[BenchmarkRow]:
    """Majority class, mean and uniform guess, fitted to the training counts and scored on the test counts.

    The mean is rounded for its accuracy, not for its RMSE; a uniform guess is scored by its expectation.
    """
    values, numbers = np.unique(train, return_counts=True)
    majority = int(values[numbers.argmax()])
    mean = float(train.mean())
    errors = np.subtract.outer(np.asarray(counts), test)
    data = f"{len(test):,} test bins of this run"
    return [
        BenchmarkRow(f"always {majority} (majority class)", data, np.mean(test == majority), _rms(test - majority)),
        BenchmarkRow(f"always {mean:.2f} (mean)", data, np.mean(test == round(mean)), _rms(test - mean)),
        BenchmarkRow("uniform guess", data, np.mean(errors == 0), _rms(errors)),
    ]


def products_baseline(train: Counts, test: Counts, counts: Sequence[int]) -> BenchmarkRow:
    """The distribution of counts among training bins with as many products, whatever these are.

    Its most probable count is scored for accuracy, its rounded mean for RMSE.

    Args:
        train: (n, 2) number of products and count, one of ``counts``, of each training bin.
        test: (n, 2) of each test bin.
    """
    most = int(max(train[:, 0].max(initial=0), test[:, 0].max(initial=0)))
    table = np.zeros((most + 1, len(counts)))
    np.add.at(table, (train[:, 0], np.searchsorted(counts, train[:, 1])), 1)
    table[table.sum(1) == 0] = table.sum(0)  # a number of products that no training bin has
    shares = table[test[:, 0]] / table[test[:, 0]].sum(1, keepdims=True)
    return list_row("the number of products in the record alone", shares, test[:, 1], counts)


def list_row(name: str, probabilities: Floats, truth: Counts, counts: Sequence[int]) -> BenchmarkRow:
    """A baseline without photographs, by its probabilities of the counts of the test bins: (n, counts)."""
    accuracy = np.mean(decode_counts(probabilities, counts, "most_probable") == truth)
    rmse = _rms(decode_counts(probabilities, counts, "rounded_mean") - truth)
    return BenchmarkRow(name, f"{len(truth):,} test bins of this run", float(accuracy), rmse)


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.square(errors).mean()))
