"""The probability of each possible error of a record: against Bayes' rule by hand and against injected errors."""

import itertools

import numpy as np
import pytest
from test_record_model import WITH_LIST, model, photographs

from bintally.params import ErrorShares
from bintally.scoring.judgement import Judgements, judge
from bintally.scoring.lists import Lists
from bintally.scoring.record_errors import error_probability, inject_errors, offsets, possible_errors
from bintally.scoring.record_model import RecordModel
from sampled_bins import TOTALS, sampled_lists

RATE = 0.2


def lists_of(*records: list[int], most: int = 4) -> Lists:
    quantities = np.array([record + [0] * (most - len(record)) for record in records], np.int64).reshape(-1, most)
    return Lists(quantities, np.full((*quantities.shape, 4), np.nan))


def judge_one(record: list[int], photograph: list[float]) -> Judgements:
    return judge(model(), np.array([photograph]), lists_of(record), RATE)


def by_hand(record_model: RecordModel, record: tuple[int, ...], likelihoods: list[float]) -> dict[object, float]:
    """Weights of all true contents, by going through every error of each: products are numbered, 9 is any other one."""
    compositions, shares = record_model.compositions, record_model.error_shares

    def frequency(quantities: tuple[int, ...]) -> float:
        number = len(quantities)
        terms = compositions.terms(np.full((1, 1, 4), np.nan), np.array([[number]]))[0, 0]

        def chance(one: tuple[int, ...]) -> float:
            return float(np.exp(sum(terms[quantity - 1] for quantity in one)))

        whole = sum(
            chance(one) for one in itertools.product(range(1, 5), repeat=number) if TOTALS.allow(np.array(sum(one)))
        )
        share = float(np.exp(compositions.log_numbers(np.array([number]), np.full((1, 1, 4), np.nan)))[0])
        return share * chance(quantities) / whole * likelihoods[sum(quantities) - 1]

    weights: dict[object, float] = {"right": (1 - RATE) * frequency(record)}
    steps = offsets(TOTALS.last)

    def errors(true: tuple[int, ...]) -> tuple[dict[str, float], dict[int, float]]:
        possible = possible_errors(np.array([true]), shares, TOTALS)
        kinds = {kind: float(values[0]) for kind, values in possible.shares.items()}
        kinds["unlisted"] /= max(int(possible.removable[0]), 1)
        return kinds, dict(zip(steps, possible.offsets[0].tolist(), strict=True))

    for place, listed in enumerate(record):
        for quantity in range(1, 5):
            true = (*record[:place], quantity, *record[place + 1 :])
            if quantity != listed and sum(true) <= 4 and listed - quantity in steps:
                kinds, chances = errors(true)
                weights[place, quantity] = RATE * frequency(true) * kinds["quantity"] * chances[listed - quantity]
        true = (*record[:place], *record[place + 1 :])
        if true:
            kinds, _ = errors(true)
            fitting = [one for one in range(1, 5) if sum(true) + one <= 4]
            chance = compositions.quantities[listed - 1] / sum(compositions.quantities[one - 1] for one in fitting)
            weights[place, 0] = RATE * frequency(true) * kinds["missing"] * chance / len(record)
    for quantity in range(1, 5 - sum(record)):
        true = (*record, quantity)
        kinds, chances = errors(true)
        error = kinds["unlisted"] + kinds["quantity"] * chances[-quantity]
        weights["unlisted", quantity] = RATE * frequency(true) * len(true) * error
    return weights


@pytest.mark.parametrize("record", [(1,), (3,), (1, 1), (2, 1), (1, 1, 1), (1, 1, 2)])
def test_probabilities_follow_from_bayes_rule(record: tuple[int, ...]) -> None:
    likelihoods = [0.1, 0.4, 0.3, 0.2]
    weights = by_hand(model(), record, likelihoods)
    whole = sum(weights.values())
    judged = judge_one(list(record), likelihoods)
    assert judged.error[0] == pytest.approx(1 - weights["right"] / whole, abs=1e-9)
    for place, quantity in itertools.product(range(len(record)), range(5)):
        assert judged.quantities[0, place, quantity] == pytest.approx(weights.get((place, quantity), 0) / whole)
    for quantity in range(1, 5):
        expected = weights.get(("unlisted", quantity), 0) / whole
        assert judged.unlisted[0, quantity - 1] == pytest.approx(expected)
    assert judged.counts.sum() == pytest.approx(1)
    before = by_hand(model(), record, [1.0] * 4)
    assert judged.error_by_list[0] == pytest.approx(1 - before["right"] / sum(before.values()), abs=1e-9)


def test_injected_errors_are_as_frequent_as_said() -> None:
    random = np.random.default_rng(0)
    lists, record_model = sampled_lists(20_000, random), model()
    altered = inject_errors(lists.quantities, lists.sizes, RATE, record_model.error_shares, TOTALS, random)
    judged = judge(record_model, photographs(lists.totals, random), Lists(altered.quantities, altered.sizes), RATE)
    for low, high in itertools.pairwise([0, 0.05, 0.15, 0.4, 1]):
        inside = (low <= judged.error) & (judged.error < high)
        assert inside.sum() > 300
        assert altered.is_wrong[inside].mean() == pytest.approx(judged.error[inside].mean(), abs=0.03)
    before = np.pad(lists.quantities, ((0, 0), (0, 1)))
    lost = ((altered.quantities == 0) & (before > 0)).any(1)
    not_there = altered.kinds == "not_there"
    assert judged.unlisted.sum() == pytest.approx(lost.sum(), rel=0.1)
    assert judged.quantities[..., 0].sum() == pytest.approx(not_there.sum(), rel=0.15)
    assert judged.counts[np.arange(len(lost)), lists.totals - 1].mean() > 0.5


def test_each_kind_of_error_is_seen_where_the_photograph_shows_it() -> None:
    # One product in the quantity one, a photograph of two items: the list is too short or the quantity too low.
    more = judge_one([1], [0.01, 0.97, 0.01, 0.01])
    assert more.error[0] > 0.5 and more.unlisted[0, 0] + more.quantities[0, 0, 2] > 0.9 * more.error[0]
    fewer = judge_one([3, 1], [0.9, 0.08, 0.01, 0.01])
    assert fewer.error[0] > 0.5 and fewer.quantities[0, 0, 0] > 0.2  # the product of three is not there
    fits = judge_one([1, 1], [0.01, 0.97, 0.01, 0.01])
    assert fits.error[0] < 0.05 < fits.error_by_list[0]


def test_contents_that_no_error_can_change_are_right_for_sure() -> None:
    only_left_out = model().model_copy(update={"error_shares": ErrorShares(quantity=0, unlisted=1, missing=0)})
    random = np.random.default_rng(3)
    lists = sampled_lists(20_000, random)
    altered = inject_errors(lists.quantities, lists.sizes, RATE, only_left_out.error_shares, TOTALS, random)
    records = Lists(altered.quantities, altered.sizes)
    judged = judge(only_left_out, photographs(lists.totals, random), records, RATE)
    assert judged.error.sum() == pytest.approx(altered.is_wrong.sum(), rel=0.03)


def test_what_the_photograph_excludes_is_wrong() -> None:
    assert judge_one([4], [1.0, 0, 0, 0]).error[0] > 0.99


def test_records_of_any_length_are_judged() -> None:
    compositions = model().compositions
    opened = model().model_copy(
        update={
            "answers": model().answers.model_copy(update={"counts": [0, 1, 2, 3, 4], "open_ended": True}),
            "offsets": [0.0] * 5,
        }
    )
    assert len(compositions.coefficients[0]) == 4
    records = lists_of([], [9], [1] * 12, [2, 0, 3], most=12)
    judged = judge(opened, np.full((4, 5), 0.2), records, RATE)
    assert np.isfinite(judged.error).all() and (judged.error >= 0).all() and (judged.error <= 1).all()
    np.testing.assert_allclose(judged.counts.sum(1), 1)
    assert judge(opened, np.empty((0, 5)), lists_of(most=3), RATE).error.shape == (0,)


def test_one_record_is_judged_as_among_others() -> None:
    random = np.random.default_rng(1)
    lists = sampled_lists(50, random)
    probabilities = photographs(lists.totals, random)
    together = judge(model(), probabilities, lists, RATE)
    for row in range(0, 50, 7):
        alone = judge(model(), probabilities[[row]], lists.take(np.array([row])), RATE)
        np.testing.assert_allclose(alone.error, together.error[[row]], atol=2e-9)
        np.testing.assert_allclose(alone.quantities, together.take(np.array([row])).quantities)


def test_a_record_is_judged_without_the_evidence_that_is_read_with_its_list() -> None:
    random = np.random.default_rng(2)
    lists = sampled_lists(20, random)
    probabilities = photographs(lists.totals, random)
    both = [judge(model(0.7, with_list=one), probabilities, lists, RATE).error.tolist() for one in (None, WITH_LIST)]
    assert both[0] == both[1]


def test_a_record_without_names_is_judged_by_its_number_of_items_and_others_beside_it_as_before() -> None:
    record_model = model()
    quantities = np.array([[2, 0], [2, 1], [1, 0], [4, 0]])
    sizes, seen = np.full((4, 2, 4), np.nan), np.random.default_rng(1).dirichlet(np.ones(4), 4)
    named = judge(record_model, seen, Lists(quantities, sizes), RATE)
    mixed = Lists(quantities, sizes, np.array([True, True, False, False]))
    judged = judge(record_model, seen, mixed, RATE)
    for field in Judgements.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(judged, field)[:2], getattr(named, field)[:2])
    expected = error_probability(seen[2:], record_model.answers.counts, np.array([1, 4]), RATE)
    np.testing.assert_allclose(judged.error[2:], expected, atol=1e-8)
    np.testing.assert_allclose(judged.quantities[2:].sum((1, 2)), expected, atol=1e-8)
    assert not judged.unlisted[2:].any() and judged.quantities[2, 0, 1] == judged.quantities[3, 0, 4] == 0
    np.testing.assert_allclose(judged.counts[2:, 1], judged.quantities[2:, 0, 2])
    assert record_model.can_count(mixed).tolist() == [True, True, False, False]
    given = record_model.count_given_products(seen, np.zeros((4, 0, 4)), mixed)
    np.testing.assert_array_equal(given[2:], seen[2:])
