"""Selections of bins to look at: pairs, examples of each count, the most blurred, the most doubtful."""

from collections.abc import Sequence

import numpy as np
from scipy.special import entr

from bintally.scoring.metrics import Counts, Floats, LabelledPredictions, columns


def same_bin_pairs(groups: Sequence[str]) -> Counts:
    """The rows of the first two photographs of every group that has several: (pairs, 2)."""
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    return np.array([rows[:2] for rows in members.values() if len(rows) > 1], dtype=np.int64).reshape(-1, 2)


def random_rows(rows: int, number: int, seed: int) -> Counts:
    """Draw at most ``number`` of the rows 0 to ``rows`` - 1, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:number])


def examples(counts: Counts, number: int, seed: int) -> Counts:
    """Draw the rows of at most ``number`` bins of each count: by count, then ascending."""
    by_count = [np.flatnonzero(counts == count) for count in np.unique(counts)]
    return np.concatenate([rows[random_rows(len(rows), number, seed)] for rows in by_count])


def entropy(probabilities: Floats) -> Floats:
    """The entropy of each distribution, nats: (n,) of (n, classes)."""
    return np.asarray(entr(probabilities).sum(1))


def least_likely_records(predictions: LabelledPredictions, number: int) -> Counts:
    """The rows of the bins with the lowest probability of the record, the lowest first."""
    return np.argsort(-columns(predictions)["loss"], kind="stable")[:number]


def least_certain(predictions: LabelledPredictions, number: int) -> Counts:
    """The rows of the bins with the highest entropy of the prediction, the highest first."""
    return np.argsort(-entropy(predictions.probabilities), kind="stable")[:number]
