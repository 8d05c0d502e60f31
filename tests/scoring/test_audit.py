"""Rankings by the probability of an error: their order, how they are scored, what recounting is expected to find."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from test_record_model import model, photographs

from bintally.scoring.audit import (
    Stakes,
    estimate_recounts,
    expected_recall_curve,
    found_by_kind,
    rank_records,
    ranking_metrics,
    recall_curve,
)
from bintally.scoring.lists import Lists
from bintally.scoring.record_errors import inject_errors
from sampled_bins import TOTALS, sampled_lists


def test_records_are_ranked_by_error_probability_then_id_and_unknown_counts_come_last() -> None:
    quantities = np.array([[5, 2], [1, 0], [2, 0], [4, 0], [2, 0], [9, 0]])  # seven and nine items are no count
    lists = Lists(quantities, np.full((6, 2, 4), np.nan))
    probabilities = np.tile([0.75, 0.15, 0.05, 0.05], (6, 1))
    order, judged, _ = rank_records(model(), probabilities, lists, 0.1, ["f", "b", "d", "e", "c", "a"])
    assert order.tolist() == [3, 4, 2, 1, 5, 0]
    assert len(judged.error) == 4 and judged.error[0] > judged.error[1] == judged.error[2] > judged.error[3]


def test_a_tolerance_leaves_errors_of_few_items_out_and_values_weigh_them() -> None:
    quantities = np.array([[3, 0], [1, 1], [2, 0]])
    lists, ids = Lists(quantities, np.full((3, 2, 4), np.nan)), ["a", "b", "c"]
    seen = np.array([[0.05, 0.9, 0.04, 0.01], [0.9, 0.08, 0.01, 0.01], [0.9, 0.08, 0.01, 0.01]])
    _, judged, probability = rank_records(model(), seen, lists, 0.1, ids)
    np.testing.assert_array_equal(probability, judged.error)
    order, judged, beyond = rank_records(model(), seen, lists, 0.1, ids, Stakes(1))
    for row, stake in zip(order, beyond, strict=True):
        at = np.flatnonzero(order == row)[0]
        by_hand = sum(
            judged.quantities[at, place, count]
            for place in range(2)
            for count in range(5)
            if abs(count - quantities[row, place]) > 1
        )
        assert stake == pytest.approx(by_hand + judged.unlisted[at, 1:].sum(), abs=1e-9)
    values = np.array([[1.0, np.nan], [1.0, np.nan], [100.0, np.nan]])  # the second product of b is as the median
    order, judged, value = rank_records(model(), seen, lists, 0.1, ids, Stakes(0, values))
    assert order[0] == 2
    missing = np.abs(np.arange(5) - 2) * judged.quantities[0, 0] * 100
    assert value[0] == pytest.approx(missing.sum() + 100 * (judged.unlisted[0] * np.arange(1, 5)).sum(), rel=1e-6)


def test_found_by_kind_is_the_share_of_each_kind_among_the_first() -> None:
    kinds = np.array(["left_out", "", "one_off", "left_out", "", "", "", "", "", ""])
    found = found_by_kind(np.array([9.0, 8, 7, 1, 0, 0, 0, 0, 0, 0]), kinds, 0.3)
    assert found == {"one_off_found_at_30": 1.0, "left_out_found_at_30": 0.5}


def test_equal_scores_are_ranked_in_random_order() -> None:
    is_wrong = np.array([True, False, False, True])
    np.testing.assert_allclose(recall_curve(np.zeros(4), is_wrong), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(recall_curve(np.array([2.0, 0, 0, 1]), is_wrong), [0, 0.5, 1, 1, 1])
    np.testing.assert_allclose(recall_curve(np.array([1.0, 1, 0, 0]), is_wrong), [0, 0.25, 0.5, 0.75, 1])


def test_a_ranking_is_scored_between_chance_and_certainty() -> None:
    is_wrong = np.arange(100) < 10
    certain, chance = ranking_metrics(is_wrong.astype(float), is_wrong), ranking_metrics(np.zeros(100), is_wrong)
    assert certain == pytest.approx(
        {"auc": 1.0, "average_precision": 1.0, "found_at_5": 0.5, "found_at_10": 1.0, "found_at_20": 1.0}
    )
    assert chance == pytest.approx(
        {"auc": 0.5, "average_precision": 0.1, "found_at_5": 0.05, "found_at_10": 0.1, "found_at_20": 0.2}
    )


def test_auc_and_average_precision_equal_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    for decimals in (1, 9):  # with and without ties
        scores, is_wrong = random.random(300).round(decimals), random.random(300) < 0.2
        metrics = ranking_metrics(scores, is_wrong)
        assert metrics["auc"] == pytest.approx(roc_auc_score(is_wrong, scores), rel=1e-12)
        assert metrics["average_precision"] == pytest.approx(average_precision_score(is_wrong, scores), rel=1e-12)


def test_recounting_finds_the_expected_number_of_errors() -> None:
    random = np.random.default_rng(1)
    lists, record_model = sampled_lists(20_000, random), model()
    altered = inject_errors(lists.quantities, lists.sizes, 0.1, record_model.error_shares, TOTALS, random)
    records = Lists(altered.quantities, altered.sizes)
    ids = [f"{number:05}" for number in range(20_000)]
    order, judged, _ = rank_records(record_model, photographs(lists.totals, random), records, 0.1, ids)
    estimate = estimate_recounts(judged.error, 2000)
    found = altered.is_wrong[order[:2000]].sum()
    assert estimate.recounts == 2000 and estimate.errors == pytest.approx(found, rel=0.1)
    assert estimate.recall == pytest.approx(found / altered.is_wrong.sum(), abs=0.03)
    assert estimate.recall == expected_recall_curve(judged.error)[2000]
    everything = estimate_recounts(judged.error, 50_000)
    assert everything.recounts == 20_000 and everything.recall == pytest.approx(1)
