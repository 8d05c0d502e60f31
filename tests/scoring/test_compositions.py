"""How frequent compositions are: learned from records, smoothed, and summed without listing them all."""

import itertools

import numpy as np
import pytest

from bintally.scoring.compositions import (
    CompositionModel,
    convolve,
    count_by_products,
    fit_compositions,
    quantity_tables,
)
from bintally.scoring.record_errors import Totals
from sampled_bins import NUMBERS, QUANTITIES, TOTALS, sampled_lists


def fitted(number: int = 4000) -> CompositionModel:
    lists = sampled_lists(number, np.random.default_rng(0))
    return fit_compositions(lists.quantities, lists.sizes, TOTALS)


def test_the_shares_that_records_were_drawn_with_are_found_again() -> None:
    model = fitted()
    unknown = np.full((4, 1, 4), np.nan)
    shares = np.exp(model.log_numbers(np.arange(4), unknown))
    np.testing.assert_allclose(shares[1:], NUMBERS, atol=0.02)
    assert 0 < shares[0] < 0.001
    # The restriction of the sums is undone: of quantities alone, within a bin, only their ratios matter.
    for number in (1, 2):
        terms = model.terms(np.full((1, 1, 4), np.nan), np.array([[number]]))[0, 0]
        ratios = np.exp(terms - terms[0])[: 5 - number]
        np.testing.assert_allclose(ratios, (QUANTITIES / QUANTITIES[0])[: 5 - number], atol=0.06)


def test_the_products_alone_give_the_shares_of_counts_among_such_bins() -> None:
    fresh = sampled_lists(20_000, np.random.default_rng(1))
    by_products = count_by_products(fitted(), TOTALS, fresh)
    np.testing.assert_allclose(by_products.sum(1), 1)
    for number in (1, 2, 3):
        rows = fresh.present.sum(1) == number
        shares = np.bincount(fresh.totals[rows], minlength=5)[1:] / rows.sum()
        np.testing.assert_allclose(by_products[rows][0], shares, atol=0.03)


def test_small_products_come_in_greater_quantities_and_numbers() -> None:
    random = np.random.default_rng(0)
    small = random.random(3000) < 0.5
    quantities = np.zeros((3000, 2), np.int64)
    quantities[:, 0] = np.where(small, random.integers(1, 4, 3000), 1)
    quantities[:, 1] = small & (random.random(3000) < 0.5) & (quantities[:, 0] < 4)
    sizes = np.where(small, -1.0, 1.0)[:, None, None] + random.normal(0, 0.2, (3000, 2, 1)) * np.ones(4)
    model = fit_compositions(quantities, sizes, TOTALS)
    (of_small,), (of_large,) = model.terms(np.array([[[-1.0] * 4], [[1.0] * 4]]), np.array([[1], [1]]))
    assert of_small[2] > of_large[2] + 1
    several = np.exp(model.log_numbers(np.array([2, 2]), np.array([[[-1.0] * 4], [[1.0] * 4]])))
    assert several[0] > 3 * several[1]


def test_no_composition_is_impossible() -> None:
    quantities = np.array([[1, 0], [1, 1]] * 5)
    model = fit_compositions(quantities, np.zeros((10, 2, 4)), Totals(list(range(13)), open_ended=True))
    terms = model.terms(np.array([[[-50.0] * 4], [[np.nan] * 4], [[50.0] * 4]]), np.array([[1], [12], [500]]))
    assert np.isfinite(terms).all() and terms.shape == (3, 1, 12)
    assert np.isfinite(model.log_numbers(np.array([0, 3, 12, 500]), np.zeros((4, 1, 4)))).all()
    nothing = fit_compositions(np.zeros((0, 0), np.int64), np.zeros((0, 0, 4)), TOTALS)
    np.testing.assert_allclose(np.exp(nothing.terms(np.zeros((1, 1, 4)), np.array([[1]]))), 0.25)


@pytest.mark.parametrize("saturate", [False, True])
def test_convolutions_equal_sums_over_all_quantities(saturate: bool) -> None:
    random = np.random.default_rng(0)
    present = np.array([[True, True, True], [True, False, True], [False, False, False]])
    tables = quantity_tables(np.log(random.dirichlet(np.ones(4), (3, 3))), present)
    sums = convolve(tables, saturate)
    for row in range(3):
        for without in (None, 0, 1, 2):
            expected = np.zeros(5)
            used = [place for place in range(3) if place != without]
            for quantities in itertools.product(range(5), repeat=len(used)):
                total = min(sum(quantities), 4) if saturate else sum(quantities)
                chance = np.prod([tables[row, place, one] for place, one in zip(used, quantities, strict=True)])
                if total <= 4:
                    expected[total] += chance
            found = sums.of_all[row] if without is None else sums.of_others[row, without]
            np.testing.assert_allclose(found, expected, atol=1e-12)


def test_equal_records_give_equal_coefficients() -> None:
    assert fitted(300) == fitted(300)
