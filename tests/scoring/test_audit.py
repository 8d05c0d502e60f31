"""Wrong records rank first, and the probability that one is wrong is what it says."""

import itertools

import numpy as np
import pytest
from bintally.model.kinship import leanings

from bintally.scoring.audit import (
    KINDS,
    budget,
    error_model,
    expected_recall_curve,
    inject_errors,
    ranking_metrics,
    recall_curve,
    wrong,
)

COUNTS = [1, 2, 3, 4, 5]
SHARE = 0.1


def drawn(number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distributions, counts drawn from them, and records of which some are wrong as `error_model` has it."""
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(len(COUNTS), 0.6), number)
    truth = np.array([random.choice(COUNTS, p=row) for row in probabilities])
    said = np.array([random.choice(COUNTS, p=error_model(COUNTS)[count - 1]) for count in truth])
    return probabilities, truth, np.where(random.random(number) < SHARE, said, truth)


def test_a_wrong_record_is_one_or_two_off() -> None:
    expected = [[0, 1 / 2, 1 / 2, 0, 0], [1 / 3, 0, 1 / 3, 1 / 3, 0], [1 / 4, 1 / 4, 0, 1 / 4, 1 / 4]]
    np.testing.assert_allclose(error_model(COUNTS)[:3], expected)
    np.testing.assert_allclose(error_model([1, 9]), [[0, 1], [1, 0]])
    np.testing.assert_allclose(error_model([3]), [[0]])


def test_the_probability_is_that_of_bayes() -> None:
    probabilities = np.array([[0.7, 0.1, 0.1, 0.05, 0.05]])
    right, made_wrong = 0.1 * (1 - SHARE), SHARE * (0.7 / 2 + 0.1 / 4 + 0.05 / 3)
    np.testing.assert_allclose(
        wrong(probabilities, COUNTS, np.array([2]), SHARE), [made_wrong / (made_wrong + right)], rtol=1e-12
    )


def test_of_records_that_are_as_likely_wrong_as_said_so_many_are() -> None:
    probabilities, truth, records = drawn(20_000)
    said = wrong(probabilities, COUNTS, records, SHARE)
    for low, high in itertools.pairwise([0, 0.02, 0.1, 0.3, 1]):
        here = (low <= said) & (said < high)
        assert here.sum() > 500
        assert (records != truth)[here].mean() == pytest.approx(said[here].mean(), abs=0.03)


def test_twins_are_judged_together_as_all_their_cases_say() -> None:
    probabilities, _, records = drawn(3, seed=4)
    kinship = 0.8
    leaning, weights = leanings(probabilities[:2], COUNTS, kinship)
    joint = np.zeros((2, 2))  # of the first record and of the second being wrong
    for node, weight in enumerate(weights):
        for first, second in itertools.product(range(5), repeat=2):
            cell = weight * leaning[node, 0, first] * leaning[node, 1, second]
            likely = [
                [(1 - SHARE) * (COUNTS[count] == record), SHARE * error_model(COUNTS)[count, record - 1]]
                for count, record in zip((first, second), records[:2], strict=True)
            ]
            joint += cell * np.outer(likely[0], likely[1])
    joint /= joint.sum()
    got = wrong(probabilities, COUNTS, records, SHARE, ["a", "a", "b"], kinship)
    np.testing.assert_allclose(got[:2], [joint[1].sum(), joint[:, 1].sum()], rtol=1e-9)
    np.testing.assert_allclose(got[2], wrong(probabilities, COUNTS, records, SHARE)[2])


def test_a_change_that_the_photographs_do_not_show_is_evidence_and_a_lean_they_share_is_none() -> None:
    alike = np.tile([0.05, 0.1, 0.3, 0.4, 0.15], (2, 1))

    def judged(first: int, second: int) -> float:
        return float(wrong(alike, COUNTS, np.array([first, second]), SHARE, ["a", "a"], kinship=1.0).max())

    assert judged(2, 4) > judged(2, 2)
    assert judged(2, 2) < wrong(alike, COUNTS, np.array([2, 2]), SHARE).max()


def test_no_records_are_not_wrong() -> None:
    assert wrong(np.empty((0, 5)), COUNTS, np.empty(0, np.int64), SHARE, [], 0.5).shape == (0,)


def test_records_made_wrong_are_so_many_and_of_the_kinds_there_are() -> None:
    records = np.tile(COUNTS, 200)
    products = [[int(record)] if at % 2 else [1] * int(record) for at, record in enumerate(records)]
    said, kinds = inject_errors(records, products, COUNTS, SHARE, np.random.default_rng(0))
    assert (said != records).sum() == 100 and set(said) <= set(COUNTS)
    assert set(kinds) == {"", *KINDS}
    for kind, before, after, quantities in zip(kinds, records, said, products, strict=True):
        match kind:
            case "":
                assert after == before
            case "left_out":
                assert before - after in quantities
            case _:
                assert abs(after - before) == (1 if kind == "one_off" else 2)
    again, _ = inject_errors(records, products, COUNTS, SHARE, np.random.default_rng(0))
    np.testing.assert_array_equal(again, said)


def test_of_equal_scores_any_may_come_first() -> None:
    is_wrong = np.array([True, False, False, True])
    np.testing.assert_allclose(recall_curve(np.zeros(4), is_wrong), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(recall_curve(np.array([2.0, 0, 0, 1]), is_wrong), [0, 0.5, 1, 1, 1])
    np.testing.assert_allclose(recall_curve(np.array([1.0, 1, 0, 0]), is_wrong), [0, 0.25, 0.5, 0.75, 1])


def test_a_ranking_is_scored_between_chance_and_certainty() -> None:
    is_wrong = np.arange(100) < 10
    certain, chance = ranking_metrics(is_wrong.astype(float), is_wrong), ranking_metrics(np.zeros(100), is_wrong)
    assert certain == {
        "auc": 1.0,
        "average_precision": 1.0,
        "found_at_5": 0.5,
        "found_at_10": 1.0,
        "found_at_20": 1.0,
    }
    assert chance == pytest.approx(
        {"auc": 0.5, "average_precision": 0.1, "found_at_5": 0.05, "found_at_10": 0.1, "found_at_20": 0.2}
    )


def test_a_budget_is_promised_what_it_then_finds() -> None:
    probabilities, truth, records = drawn(20_000, seed=1)
    said = wrong(probabilities, COUNTS, records, SHARE)
    promised = budget(said, 2000)
    found = (records != truth)[np.argsort(-said)[:2000]].sum()
    assert promised.recounts == 2000 and promised.errors == pytest.approx(found, rel=0.1)
    assert promised.share == pytest.approx(found / (records != truth).sum(), abs=0.03)
    assert promised.share == expected_recall_curve(said)[2000]
    everything = budget(said, 50_000)
    assert everything.recounts == 20_000 and everything.share == pytest.approx(1)
