"""What training knows of lists: their features, and how frequent counts are with the products, from training alone."""

import math

import numpy as np
import pytest

from bintally.bins.contents import Contents
from bintally.bins.products import Product
from bintally.scoring.record_errors import Totals
from bintally.training.lists import LEAST, list_inputs

TOTALS = Totals([1, 2], open_ended=False)


def bin_of(*products: tuple[int, float], is_known: bool = True) -> Contents:
    """A bin with products of these quantities and sizes."""
    return Contents([Product(str(at), "", number, (size,) * 4) for at, (number, size) in enumerate(products)], is_known)


LEARNED = [*[bin_of((1, 2.0))] * 300, *[bin_of((2, 2.0))] * 100, *[bin_of((1, 2.0), (1, 6.0))] * 400]
MEAN, DEVIATION = 3.333333, 1.885618  # of the sizes of these products: 2 in two thirds of them, 6 in the others
# One and two products; a count that is not allowed, whose list excludes another; not known what lies in it.
ASKED = [bin_of((1, 2.0)), bin_of((1, 6.0), (1, math.nan)), bin_of(*[(1, 2.0)] * 3), bin_of((1, 2.0), is_known=False)]


def test_features_and_frequencies_are_of_the_products_and_zero_where_they_are_not_known() -> None:
    contents = [*LEARNED, *ASKED]
    lists, scale = list_inputs(contents, np.arange(len(contents)) < len(LEARNED), TOTALS)
    assert scale.means == pytest.approx([MEAN] * 4, abs=1e-4)
    assert scale.deviations == pytest.approx([DEVIATION] * 4, abs=1e-4)
    number, small, large = np.eye(6), -0.70711, 1.41421  # one-hot; standardised
    rows = [[*number[1], *[small] * 4], [*number[2], *[large] * 4], [*number[3], *[small] * 4], [0.0] * 10]
    np.testing.assert_allclose(lists.features[-4:], np.array(rows), atol=1e-4)
    # Three of four bins with one product have one item; penalties of the fit move this little.
    np.testing.assert_allclose(np.exp(lists.log_prior[-4]), [0.75, 0.25], atol=0.02)
    least = math.log(LEAST)
    expected = np.array([[least, 0.0], [least, least], [0.0, 0.0]])
    np.testing.assert_allclose(lists.log_prior[-3:], expected, atol=1e-6)


def test_frequencies_are_learned_from_known_bins_of_training_alone() -> None:
    contents = [*LEARNED, *ASKED]
    is_train = np.arange(len(contents)) < len(LEARNED)
    expected, scale = list_inputs(contents, is_train, TOTALS)
    others = [bin_of((2, 2.0)), bin_of((2, 2.0), is_known=False), bin_of((5, 2.0))]  # the last is not of TOTALS
    lists, same = list_inputs([*contents, *others * 50], np.append(is_train, [False, True, True] * 50), TOTALS)
    assert same == scale
    np.testing.assert_array_equal(lists.log_prior[: len(contents)], expected.log_prior)
    changed, other = list_inputs([*contents, *others * 50], np.append(is_train, [True] * 150), TOTALS)
    assert other != scale and changed.log_prior[len(LEARNED), 1] > expected.log_prior[len(LEARNED), 1] + 0.1
