"""Baselines that need no model, against values worked out by hand."""

import math

import numpy as np
import pytest

from bintally.scoring.references import baselines, products_baseline


def test_baselines_are_fitted_to_training_and_scored_on_test() -> None:
    train, test = np.array([1, 1, 2, 5]), np.array([1, 2, 2, 3])
    majority, mean, uniform = baselines(train, test, [1, 2, 3])
    assert (majority.name, majority.accuracy) == ("always 1 (majority class)", 1 / 4)
    assert majority.rmse == pytest.approx(math.sqrt((0 + 1 + 1 + 4) / 4))
    assert (mean.name, mean.accuracy) == ("always 2.25 (mean)", 2 / 4)
    assert mean.rmse == pytest.approx(math.sqrt((1.25**2 + 2 * 0.25**2 + 0.75**2) / 4))
    assert uniform.accuracy == pytest.approx(1 / 3)
    # Squared errors of the guesses 1, 2 and 3: 0+1+4 for 1, 1+0+1 for each 2, 4+1+0 for 3.
    assert uniform.rmse == pytest.approx(math.sqrt((5 + 2 + 2 + 5) / 12))
    assert {row.data for row in (majority, mean, uniform)} == {"4 test bins of this run"}


def test_the_number_of_products_gives_the_counts_of_training_bins_with_as_many() -> None:
    train = np.array([[1, 1], [1, 1], [1, 2], [2, 2], [2, 3], [2, 3]])
    row = products_baseline(train, np.array([[1, 1], [2, 3], [2, 2], [5, 2]]), [1, 2, 3])
    # Most probable are 1, 3, 3 and, for a number that no training bin has, the first of the most frequent of all.
    assert row.accuracy == 0.5
    assert row.rmse == pytest.approx((1 / 4) ** 0.5)  # the rounded means: 1, 3, 3, 2
    assert row.data == "4 test bins of this run"
