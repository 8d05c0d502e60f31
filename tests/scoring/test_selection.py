"""Selections: photographs of the same bin, examples, doubtful records."""

import numpy as np

from bintally.scoring import selection
from bintally.scoring.metrics import LabelledPredictions

PREDICTIONS = LabelledPredictions(
    probabilities=np.array([[0.9, 0.1, 0.0], [0.3, 0.4, 0.3], [0.05, 0.9, 0.05], [0.0, 0.2, 0.8]]),
    truth=np.array([1, 2, 3, 2]),
    groups=["a", "b", "c", "d"],
    counts=[1, 2, 3],
)


def test_pairs_are_the_first_two_photographs_of_a_group() -> None:
    groups = ["a", "b", "a", "c", "b", "a"]
    assert selection.same_bin_pairs(groups).tolist() == [[0, 2], [1, 4]]
    assert selection.same_bin_pairs(["a", "b"]).shape == (0, 2)


def test_examples_have_every_count_and_depend_on_the_seed_alone() -> None:
    counts = np.array([2, 1, 2, 2, 3, 1, 2])
    rows = selection.examples(counts, 2, seed=1)
    assert counts[rows].tolist() == [1, 1, 2, 2, 3]
    assert len(set(rows.tolist())) == len(rows)
    assert rows.tolist() == selection.examples(counts, 2, seed=1).tolist()
    drawn = {tuple(selection.examples(counts, 2, seed).tolist()) for seed in range(8)}
    assert len(drawn) > 1, "the seed has no effect"


def test_the_least_likely_records_and_the_least_certain_predictions_come_first() -> None:
    assert selection.least_likely_records(PREDICTIONS, 3).tolist() == [2, 3, 1]
    assert selection.least_certain(PREDICTIONS, 2).tolist() == [1, 3]
    np.testing.assert_allclose(selection.entropy(np.array([[0.5, 0.5], [1, 0]])), [np.log(2), 0])
