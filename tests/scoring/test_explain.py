"""Judgements in words."""

import numpy as np
import pytest

from bintally.scoring.explain import (
    Evidence,
    Hypothesis,
    evidence,
    evidence_in_words,
    hypotheses,
    in_words,
    likely_counts,
    verdict,
)
from bintally.scoring.judgement import Judgements

NAMES, QUANTITIES = ["Desk Lamp", "Tea Sampler"], [3, 1]


def judgement(**probabilities: float) -> Judgements:
    """A bin with three lamps and a sampler: of two lamps, of no sampler, of something that is not listed."""
    quantities, unlisted = np.zeros((1, 2, 6)), np.zeros((1, 5))
    for quantity, name in ((1, "one_lamp"), (2, "two_lamps"), (4, "four_lamps"), (5, "five_lamps")):
        quantities[0, 0, quantity] = probabilities.get(name, 0)
    quantities[0, 1, 0] = probabilities.get("no_sampler", 0)
    unlisted[0, :2] = 0.7 * probabilities.get("unlisted", 0), 0.3 * probabilities.get("unlisted", 0)
    error = np.array([quantities.sum() + unlisted.sum()])
    counts = np.array([[0, 0, quantities.sum(), 1 - error[0], unlisted.sum()]])
    return Judgements(quantities, unlisted, counts, error, np.array([0.2]))


@pytest.mark.parametrize(
    ("probabilities", "words"),
    [
        ({"two_lamps": 0.6}, "probably 2, not 3, of Desk Lamp"),
        ({"no_sampler": 0.45, "two_lamps": 0.3}, "probably wrong, perhaps none of Tea Sampler"),
        ({"unlisted": 0.3, "two_lamps": 0.3, "one_lamp": 0.2}, "probably wrong, perhaps fewer than 3 of Desk Lamp"),
        ({"five_lamps": 0.3, "four_lamps": 0.3}, "probably more than 3 of Desk Lamp"),
        ({"unlisted": 0.7}, "probably something that is not in the record"),
        (
            {"unlisted": 0.2, "two_lamps": 0.1},
            "probably as in the record; otherwise something that is not in the record",
        ),
        ({}, "probably as in the record"),
    ],
)
def test_the_verdict_is_the_most_probable_hypothesis(probabilities: dict[str, float], words: str) -> None:
    found = hypotheses(judgement(**probabilities), 0, QUANTITIES)
    assert verdict(found, NAMES, QUANTITIES) == words


def test_hypotheses_come_in_order_and_without_those_that_hardly_count() -> None:
    found = hypotheses(judgement(two_lamps=0.5, no_sampler=0.004, unlisted=0.1), 0, QUANTITIES)
    assert [(one.kind, one.product, one.quantity) for one in found] == [
        ("quantity", 0, 2), ("right", None, None), ("unlisted", None, 1),
    ]  # fmt: skip
    assert [one.probability for one in found] == pytest.approx([0.5, 0.396, 0.1])
    assert in_words(Hypothesis("right", 0.4), NAMES, QUANTITIES) == "as in the record"
    many = Judgements(np.full((1, 300, 6), 1 / 1800), np.zeros((1, 5)), np.zeros((1, 5)), np.ones(1), np.ones(1))
    assert len(hypotheses(many, 0, [1] * 300)) == 1  # each is improbable
    assert verdict([Hypothesis("right", 0.4)], NAMES, QUANTITIES) == "probably wrong"


def test_evidence_is_how_the_odds_of_an_error_change() -> None:
    found = evidence(judgement(two_lamps=0.5), 0.1)
    assert found.list[0] == pytest.approx((0.2 / 0.8) / (0.1 / 0.9))
    assert found.photograph[0] == pytest.approx((0.5 / 0.5) / (0.2 / 0.8))
    certain = evidence(judgement(two_lamps=1.0), 0.1)
    assert isinstance(certain, Evidence) and np.isfinite(certain.photograph).all()


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1.1, "the photograph hardly changes that"),
        (4.04, "the photograph makes an error 4.0 times as likely"),
        (0.05, "the photograph makes an error 20 times less likely"),
        (1e7, "the photograph makes an error 1,000 or more times as likely"),
    ],
)
def test_factors_are_put_in_words(factor: float, words: str) -> None:
    assert evidence_in_words(factor, "the photograph") == words


def test_the_likely_count_is_that_of_all_hypotheses() -> None:
    assert likely_counts(judgement(two_lamps=0.6), [1, 2, 3, 4, 5]).tolist() == [3]
