"""Bins whose contents follow a known distribution, for the tests of what is learned from records."""

import itertools

import numpy as np

from bintally.scoring.lists import Lists
from bintally.scoring.record_errors import Totals

NUMBERS = np.array([0.3, 0.45, 0.25])  # shares of bins with 1, 2 and 3 products
QUANTITIES = np.array([0.6, 0.25, 0.1, 0.05])  # of products with 1, 2, … items, before sums are restricted
TOTALS = Totals([1, 2, 3, 4], open_ended=False)


def sampled_lists(number: int, random: np.random.Generator, sizes: int = 4) -> Lists:
    """Bins with independent quantities of products, of those whose sum is allowed; sizes are not known."""
    quantities = np.zeros((number, len(NUMBERS)), np.int64)
    drawn = random.choice(len(NUMBERS), number, p=NUMBERS) + 1
    for products in range(1, len(NUMBERS) + 1):
        rows = np.flatnonzero(drawn == products)
        fitting = [one for one in itertools.product(range(1, 5), repeat=products) if TOTALS.allow(np.array(sum(one)))]
        weights = np.array([np.prod(QUANTITIES[np.array(one) - 1]) for one in fitting])
        chosen = random.choice(len(fitting), len(rows), p=weights / weights.sum())
        quantities[rows, :products] = np.array(fitting)[chosen]
    return Lists(quantities, np.full((number, len(NUMBERS), sizes), np.nan))
