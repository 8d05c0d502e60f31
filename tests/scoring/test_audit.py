"""Errors of records: their probability, how a ranking by it is scored, and what recounting is expected to find."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from bintally.scoring.audit import (
    ERROR_KINDS,
    error_model,
    error_probability,
    estimate_recounts,
    expected_recall_curve,
    inject_errors,
    rank_records,
    ranking_metrics,
    recall_curve,
)

COUNTS = [1, 2, 3, 4, 5]
SHARE = 0.1


def sampled(number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distributions, counts drawn from them, and records with errors that follow `error_model`."""
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(len(COUNTS), 0.6), number)
    truth = np.array([random.choice(COUNTS, p=row) for row in probabilities])
    wrong = np.array([random.choice(COUNTS, p=error_model(COUNTS)[count - 1]) for count in truth])
    return probabilities, truth, np.where(random.random(number) < SHARE, wrong, truth)


def test_a_wrong_record_is_mostly_one_or_two_off_and_never_impossible() -> None:
    model = error_model(COUNTS)
    of_one, of_two = np.array([0, 1, 1, 0.1, 0.01]) / 2.11, np.array([1, 0, 1, 1, 0.1]) / 3.1
    np.testing.assert_allclose(model[:3], [of_one, of_two, np.array([1, 1, 0, 1, 1]) / 4])
    np.testing.assert_allclose(error_model([1, 9]), [[0, 1], [1, 0]])
    np.testing.assert_allclose(error_model([3]), [[0]])
    for counts in (COUNTS, [1, 9], [0, 1, 1000], list(range(1001))):
        model = error_model(counts)
        np.testing.assert_allclose(model.sum(1), 1)
        assert (model[~np.eye(len(counts), dtype=bool)] > 0).all() and not model.diagonal().any()


def test_the_error_probability_follows_from_bayes_rule() -> None:
    probabilities = np.array([[0.7, 0.1, 0.1, 0.05, 0.05]])
    right, wrong = 0.1 * (1 - SHARE), SHARE * (0.7 / 2.11 + 0.1 / 4 + 0.05 / 3.1 + 0.05 * 0.1 / 2.11)
    result = error_probability(probabilities, COUNTS, np.array([2]), SHARE)
    np.testing.assert_allclose(result, [wrong / (wrong + right)], atol=1e-9)
    assert error_probability(np.empty((0, 5)), COUNTS, np.empty(0, np.int64), SHARE).shape == (0,)


def test_a_record_far_from_what_the_photograph_shows_is_doubted() -> None:
    sure_of_five, nearly = [0, 0, 0, 0, 1.0], [1e-4, 0, 0, 0, 1 - 1e-4]
    result = error_probability(np.array([sure_of_five, nearly]), COUNTS, np.array([1, 1]), SHARE)
    assert result[0] == 1 and result[1] > 0.5
    # So is one that the photograph excludes, whatever the prior.
    assert error_probability(np.array([sure_of_five]), COUNTS, np.array([1]), 1e-323) == 1


def test_the_error_probability_is_calibrated() -> None:
    probabilities, truth, records = sampled(20_000)
    predicted = error_probability(probabilities, COUNTS, records, SHARE)
    for low, high in itertools.pairwise([0, 0.02, 0.1, 0.3, 1]):
        inside = (low <= predicted) & (predicted < high)
        assert inside.sum() > 500
        assert (records != truth)[inside].mean() == pytest.approx(predicted[inside].mean(), abs=0.03)


def test_records_are_ranked_by_error_probability_then_id_and_unknown_counts_come_last() -> None:
    probabilities = np.tile([0.7, 0.1, 0.1, 0.05, 0.05], (5, 1))
    order, values = rank_records(probabilities, COUNTS, np.array([7, 1, 2, 5, 2]), SHARE, ["a", "b", "d", "e", "c"])
    assert order.tolist() == [4, 2, 3, 1, 0]
    assert len(values) == 4 and values[0] == values[1] > values[2] > values[3]


def test_injected_errors_have_the_share_and_the_kinds_of_the_model() -> None:
    records = np.tile(COUNTS, 200)
    quantities = [[int(record)] if row % 2 else [1] * int(record) for row, record in enumerate(records)]
    changed, kinds = inject_errors(records, quantities, COUNTS, SHARE, np.random.default_rng(0))
    assert (changed != records).sum() == 100 and set(changed) <= set(COUNTS)
    assert set(kinds) == {"", *ERROR_KINDS}
    for kind, before, after, products in zip(kinds, records, changed, quantities, strict=True):
        match kind:
            case "":
                assert after == before
            case "left_out":
                assert before - after in products
            case _:
                assert abs(after - before) == (1 if kind == "one_off" else 2)
    again, _ = inject_errors(records, quantities, COUNTS, SHARE, np.random.default_rng(0))
    np.testing.assert_array_equal(again, changed)


def test_some_records_stay_right_however_large_the_share() -> None:
    records = np.array([1, 2, 3])
    changed, _ = inject_errors(records, [[1], [2], [3]], COUNTS, 0.99, np.random.default_rng(0))
    assert (changed != records).sum() == 2
    assert np.isfinite(list(ranking_metrics(np.zeros(3), changed != records).values())).all()


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
    probabilities, truth, records = sampled(20_000, seed=1)
    predicted = error_probability(probabilities, COUNTS, records, SHARE)
    estimate = estimate_recounts(predicted, 2000)
    found = (records != truth)[np.argsort(-predicted)[:2000]].sum()
    assert estimate.recounts == 2000 and estimate.errors == pytest.approx(found, rel=0.1)
    assert estimate.recall == pytest.approx(found / (records != truth).sum(), abs=0.03)
    assert estimate.recall == expected_recall_curve(predicted)[2000]
    everything = estimate_recounts(predicted, 50_000)
    assert everything.recounts == 20_000 and everything.recall == pytest.approx(1)
