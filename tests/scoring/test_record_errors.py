"""The errors of records: which there are, how likely each is, and how they are injected."""

import itertools

import numpy as np
import pytest

from bintally.params import ErrorShares
from bintally.scoring.record_errors import (
    ERROR_KINDS,
    Totals,
    error_model,
    error_probability,
    inject_errors,
    offset_weight,
    offsets,
    possible_errors,
)

COUNTS = [1, 2, 3, 4, 5]
TOTALS = Totals(COUNTS, open_ended=False)
SHARE = 0.1
SHARES = ErrorShares(quantity=0.4, unlisted=0.4, missing=0.2)


def sampled(number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distributions, counts drawn from them, and records with errors that follow `error_model`."""
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(len(COUNTS), 0.6), number)
    truth = np.array([random.choice(COUNTS, p=row) for row in probabilities])
    wrong = np.array([random.choice(COUNTS, p=error_model(COUNTS)[count - 1]) for count in truth])
    return probabilities, truth, np.where(random.random(number) < SHARE, wrong, truth)


def test_totals_are_allowed_by_the_counts_and_above_the_last_if_that_is_open_ended() -> None:
    totals = np.array([-1, 0, 1, 2, 3, 4, 9])
    closed, opened = Totals([1, 3], open_ended=False), Totals([1, 3], open_ended=True)
    assert closed.allow(totals).tolist() == [False, False, True, False, True, False, False]
    assert opened.allow(totals).tolist() == [False, False, True, False, True, True, True]
    assert opened.column(totals[1:]).tolist() == [-1, 0, -1, 1, 1, 1]


def test_offsets_of_one_and_two_are_alike_and_further_ones_ten_times_rarer() -> None:
    assert offsets(3) == [-3, -2, -1, 1, 2, 3] and offsets(1) == [-2, -1, 1, 2]
    assert [offset_weight(offset) for offset in (-1, 2, 3, -4)] == pytest.approx([1, 1, 0.1, 0.01])


def test_possible_errors_leave_an_allowed_number_of_items() -> None:
    # One of one; one and four; five of one each.
    bins = np.array([[1, 0, 0, 0, 0], [1, 4, 0, 0, 0], [1, 1, 1, 1, 1]])
    possible = possible_errors(bins, SHARES, TOTALS)
    np.testing.assert_allclose(possible.shares["quantity"], [2 / 3, 0.5, 0.5])
    np.testing.assert_allclose(possible.shares["unlisted"], [0, 0.5, 0.5])  # not the only product
    np.testing.assert_allclose(possible.shares["missing"], [1 / 3, 0, 0])  # not beyond five
    assert possible.removable.tolist() == [0, 2, 5]
    chances = dict(zip(offsets(5), possible.offsets.T, strict=True))
    # Of the second bin, either product may lose one, the larger alone two or more.
    weights = 1 + 1 + 0.1 + 0.01
    np.testing.assert_allclose(
        [chances[-1][1], chances[-2][1], chances[-4][1]], [1 / 2 / weights, 1 / weights, 0.01 / weights]
    )
    assert chances[1][1] == 0 and chances[-1][2] == pytest.approx(1 / 5)
    for row, quantities in enumerate(bins):
        able = [sum(quantity + step >= 0 for quantity in quantities if quantity) for step in offsets(5)]
        assert possible.offsets[row] @ able == pytest.approx(1)


def test_injected_errors_have_the_kinds_and_the_shares_of_the_definition() -> None:
    random = np.random.default_rng(0)
    bins = np.array(
        [composition for composition in itertools.product(range(3), repeat=3) if 1 <= sum(composition) <= 4]
    )
    quantities, sizes = np.tile(bins, (300, 1)), np.tile(np.arange(4.0), (300 * len(bins), 3, 1))
    altered = inject_errors(quantities, sizes, 0.2, SHARES, TOTALS, random)
    assert altered.is_wrong.sum() == round(0.2 * len(quantities)) and set(altered.kinds) == {"", *ERROR_KINDS}
    changed = altered.quantities - np.pad(quantities, ((0, 0), (0, 1)))
    assert TOTALS.allow(altered.quantities.sum(1)).all() and (altered.quantities >= 0).all()
    for kind, before, after, difference in zip(altered.kinds, quantities, altered.quantities, changed, strict=True):
        steps = difference[difference != 0].tolist()
        match kind:
            case "":
                assert not steps
            case "left_out":
                place = int(np.flatnonzero(difference)[0])
                assert steps == [-before[place]] and (after > 0).sum() == (before > 0).sum() - 1
            case "not_there":
                assert steps == [after[-1]] and after[-1] > 0
            case "one_off":
                assert steps in ([-1], [1]) and not after[-1]
            case _:
                assert len(steps) == 1 and abs(steps[0]) >= 2 and not after[-1]
    expected = {kind: shares.mean() for kind, shares in possible_errors(quantities, SHARES, TOTALS).shares.items()}
    found = [
        np.isin(altered.kinds, kinds).sum() / altered.is_wrong.sum() for kinds in (["one_off", "two_off"], ["left_out"])
    ]
    assert found == pytest.approx([expected["quantity"], expected["unlisted"]], abs=0.05)


def test_injected_errors_can_be_kept_to_one_item() -> None:
    quantities, sizes = np.tile([[1, 3]], (200, 1)), np.zeros((200, 2, 4))
    only = ErrorShares(quantity=1, unlisted=0, missing=0)
    altered = inject_errors(quantities, sizes, 0.5, only, TOTALS, np.random.default_rng(0), furthest=1)
    assert set(altered.kinds) == {"", "one_off"}
    assert np.abs(altered.quantities[:, :2] - quantities).sum(1).max() == 1


def test_some_records_stay_right_however_large_the_share() -> None:
    altered = inject_errors(
        np.array([[1], [2], [3]]), np.zeros((3, 1, 4)), 0.99, SHARES, TOTALS, np.random.default_rng(0)
    )
    assert altered.is_wrong.sum() == 2
    one_can = inject_errors(
        np.array([[1], [5]]), np.zeros((2, 1, 4)), 0.1, SHARES, Totals([5, 6], False), np.random.default_rng(0)
    )
    assert one_can.is_wrong.tolist() == [False, True]
    none = inject_errors(
        np.array([[3]]), np.zeros((1, 1, 4)), 0.5, SHARES, Totals([3], False), np.random.default_rng(0)
    )
    assert not none.is_wrong.any()


def test_products_that_fit_are_looked_for_once_for_each_number_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_through: list[int] = []
    column = Totals.column

    def counted(totals: Totals, numbers: np.ndarray) -> np.ndarray:
        looked_through.append(np.size(numbers))
        return column(totals, numbers)

    monkeypatch.setattr(Totals, "column", counted)
    quantities, sizes = np.tile([[1], [2], [3], [4]], (1000, 1)), np.zeros((4000, 1, 4))
    only = ErrorShares(quantity=0, unlisted=0, missing=1)
    altered = inject_errors(quantities, sizes, 0.5, only, TOTALS, np.random.default_rng(0))
    assert (altered.kinds == "not_there").sum() == 2000
    assert sum(looked_through) < 50 * len(quantities)  # and not 2000 times all of them


def test_a_wrong_count_is_mostly_one_or_two_off_and_never_impossible() -> None:
    model = error_model(COUNTS)
    of_one, of_two = np.array([0, 1, 1, 0.1, 0.01]) / 2.11, np.array([1, 0, 1, 1, 0.1]) / 3.1
    np.testing.assert_allclose(model[:3], [of_one, of_two, np.array([1, 1, 0, 1, 1]) / 4])
    np.testing.assert_allclose(error_model([1, 9]), [[0, 1], [1, 0]])
    np.testing.assert_allclose(error_model([3]), [[0]])
    for counts in (COUNTS, [1, 9], [0, 1, 1000], list(range(1001))):
        model = error_model(counts)
        np.testing.assert_allclose(model.sum(1), 1)
        assert (model[~np.eye(len(counts), dtype=bool)] > 0).all() and not model.diagonal().any()


def test_the_error_probability_of_a_count_follows_from_bayes_rule() -> None:
    probabilities = np.array([[0.7, 0.1, 0.1, 0.05, 0.05]])
    right, wrong = 0.1 * (1 - SHARE), SHARE * (0.7 / 2.11 + 0.1 / 4 + 0.05 / 3.1 + 0.05 * 0.1 / 2.11)
    result = error_probability(probabilities, COUNTS, np.array([2]), SHARE)
    np.testing.assert_allclose(result, [wrong / (wrong + right)], atol=1e-9)
    assert error_probability(np.empty((0, 5)), COUNTS, np.empty(0, np.int64), SHARE).shape == (0,)


def test_a_count_far_from_what_the_photograph_shows_is_doubted() -> None:
    sure_of_five, nearly = [0, 0, 0, 0, 1.0], [1e-4, 0, 0, 0, 1 - 1e-4]
    result = error_probability(np.array([sure_of_five, nearly]), COUNTS, np.array([1, 1]), SHARE)
    assert result[0] == 1 and result[1] > 0.5
    # So is one that the photograph excludes, whatever the prior.
    assert error_probability(np.array([sure_of_five]), COUNTS, np.array([1]), 1e-323) == 1


def test_the_error_probability_of_a_count_is_calibrated() -> None:
    probabilities, truth, records = sampled(20_000)
    predicted = error_probability(probabilities, COUNTS, records, SHARE)
    for low, high in itertools.pairwise([0, 0.02, 0.1, 0.3, 1]):
        inside = (low <= predicted) & (predicted < high)
        assert inside.sum() > 500
        assert (records != truth)[inside].mean() == pytest.approx(predicted[inside].mean(), abs=0.03)
