"""What a model says on validation becomes probabilities, sets and a threshold that keep their word on other bins."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bintally.errors import UserError
from bintally.files import write_json
from bintally.scoring.calibration import (
    Floats,
    answer,
    calibrated,
    conformal_scores,
    fit_confidence_threshold,
    fit_conformal_threshold,
    fit_temperature,
    load_calibration,
    save_calibration,
    sets,
)
from small import CALIBRATION

COUNTS = [1, 2, 3, 4, 5]


def softmax(logits: Floats) -> Floats:
    weights = np.exp(logits)
    return np.asarray(weights / weights.sum(1, keepdims=True))


def drawn(number: int, seed: int) -> tuple[Floats, np.ndarray]:
    """Distributions over five classes, about half of them with several peaks, and a class drawn from each."""
    random = np.random.default_rng(seed)
    probabilities = softmax(1.2 * random.normal(size=(number, 5)))
    return probabilities, (random.random((number, 1)) > probabilities.cumsum(1)).sum(1)


# --- answers --------------------------------------------------------------------------------------------


def test_an_answer_has_counts_by_every_rule_a_set_and_doubt() -> None:
    answers = answer(np.array([[0.9, 0.1, 0.0], [0.45, 0.1, 0.45]]), CALIBRATION)  # of 2, 3 and 5
    assert {rule: counts.tolist() for rule, counts in answers.decoded.items()} == {
        "most_probable": [2, 2],
        "rounded_mean": [2, 3],
        "median": [2, 3],
    }
    assert (answers.low.tolist(), answers.high.tolist()) == ([2, 2], [3, 5])
    assert answers.unsure.tolist() == [False, True]
    never = CALIBRATION.model_copy(update={"confidence": None})
    assert answer(np.array([[1.0, 0.0, 0.0]]), never).unsure.all()


# --- probabilities -------------------------------------------------------------------------------------


def test_probabilities_are_of_the_counts_there_are_at_the_temperature() -> None:
    logs = np.log([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]])
    np.testing.assert_allclose(calibrated(logs, [1, 2, 4], [1, 2, 4], 1.0), np.exp(logs))
    np.testing.assert_allclose(calibrated(logs, [1, 2, 4], [1, 4], 1.0), [[5 / 8, 3 / 8], [1 / 2, 1 / 2]])
    np.testing.assert_allclose(calibrated(logs, [1, 2, 4], [2, 4], 0.5), [[4 / 13, 9 / 13], [64 / 65, 1 / 65]])
    certain = calibrated(np.array([[-2e4, -1e4, -3e4]]), [1, 2, 4], [1, 2, 4], 0.05)
    np.testing.assert_array_equal(certain, [[0, 1, 0]])


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_a_model_is_off_by_is_found(temperature: float) -> None:
    probabilities, classes = drawn(20_000, seed=0)
    # Not normalised: a constant of the row's own changes nothing.
    logs = np.log(probabilities) * temperature + np.arange(len(classes))[:, None] % 7
    assert fit_temperature(logs, classes) == pytest.approx(temperature, rel=0.03)


# --- sets ----------------------------------------------------------------------------------------------


def test_a_set_grows_from_the_most_probable_count_to_the_more_probable_of_the_two_beside_it() -> None:
    # From 0.4 to 0.1, over which alone 0.3 is reached, to 0.3, to 0.08, to 0.12.
    np.testing.assert_allclose(conformal_scores(np.array([[0.12, 0.08, 0.4, 0.1, 0.3]])), [[0.88, 0.8, 0, 0.4, 0.5]])
    np.testing.assert_allclose(conformal_scores(np.array([[0.25, 0.25, 0.25, 0.25]])), [[0, 0.25, 0.5, 0.75]])


def grown(row: list[float]) -> list[float]:
    """What :func:`conformal_scores` gives for one row."""
    inside = [int(np.argmax(row))]
    before = {inside[0]: 0.0}
    while len(inside) < len(row):
        beside = [at for at in (min(inside) - 1, max(inside) + 1) if 0 <= at < len(row)]
        best = max(beside, key=lambda at: row[at])
        before[best] = sum(row[at] for at in inside)
        inside.append(best)
    return [before[at] for at in range(len(row))]


def test_masses_are_those_of_sets_grown_one_by_one() -> None:
    probabilities, _ = drawn(500, seed=1)
    np.testing.assert_allclose(conformal_scores(probabilities), [grown(row) for row in probabilities.tolist()])


@pytest.mark.parametrize("mass", [0.0, 0.3, 0.7, 0.95])
def test_a_set_holds_the_most_probable_count_and_grows_until_it_holds_more_than_the_mass(mass: float) -> None:
    probabilities, _ = drawn(500, seed=2)
    low, high = sets(probabilities, mass)
    for row, first, last in zip(probabilities, low, high, strict=True):
        assert first <= row.argmax() <= last
        assert row[first : last + 1].sum() > mass or (first, last) == (0, 4)
        # Before the last that joined, which is at one of the ends.
        assert first == last or row[first : last + 1].sum() - max(row[first], row[last]) <= mass


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("coverage", [0.7, 0.9])
def test_sets_hold_the_share_of_new_bins_they_promise_even_where_probabilities_are_wrong(
    temperature: float, coverage: float
) -> None:
    probabilities, classes = drawn(24_000, seed=3)
    said = softmax(np.log(probabilities) / temperature)
    low, high = sets(said[4000:], fit_conformal_threshold(said[:4000], classes[:4000], coverage))
    covered = (low <= classes[4000:]) & (classes[4000:] <= high)
    assert coverage - 0.015 < covered.mean() < coverage + 0.015


def test_sets_keep_their_promise_on_average_where_few_bins_were_learned_from() -> None:
    probabilities, classes = drawn(20_000, seed=4)
    covered = []
    for few in np.arange(20_000).reshape(1000, 20):
        low, high = sets(probabilities[few[9:]], fit_conformal_threshold(probabilities[few[:9]], classes[few[:9]], 0.8))
        covered.append(((low <= classes[few[9:]]) & (classes[few[9:]] <= high)).mean())
    assert 0.79 < np.mean(covered) < 0.81  # of ten that are exchangeable the new one is among the first eight


def test_too_few_bins_for_the_promise_give_sets_of_all() -> None:
    probabilities, classes = drawn(2000, seed=5)
    low, high = sets(probabilities, fit_conformal_threshold(probabilities[:9], classes[:9], 0.95))
    assert set(low) == {0} and set(high) == {4}


# --- being unsure --------------------------------------------------------------------------------------

# From the surest on: right, wrong, right, right.
ANSWERS = np.array([[0.8, 0.2], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
TRUE = np.array([1, 0, 1, 1])


@pytest.mark.parametrize(("sure", "confidence"), [(0.95, 0.9), (0.76, 0.9), (0.75, 0.6), (0.6, 0.6)])
def test_as_many_answers_as_can_be_are_no_unsure(sure: float, confidence: float) -> None:
    assert fit_confidence_threshold(ANSWERS, TRUE, sure) == confidence


def test_answers_as_sure_as_each_other_are_all_given_or_none() -> None:
    equal = np.array([[0.9, 0.1], [0.9, 0.1], [0.7, 0.3]])
    assert fit_confidence_threshold(equal, np.array([0, 1, 0]), 0.8) is None
    assert fit_confidence_threshold(equal, np.array([0, 0, 1]), 0.8) == 0.9


def test_where_no_answers_are_right_often_enough_all_are_unsure() -> None:
    assert fit_confidence_threshold(ANSWERS, 1 - TRUE, 0.8) is None


def test_answers_that_are_no_unsure_are_right_as_often_as_asked_on_new_bins() -> None:
    probabilities, classes = drawn(24_000, seed=6)
    confidence = fit_confidence_threshold(probabilities[:4000], classes[:4000], 0.7)
    new, right = probabilities[4000:], probabilities[4000:].argmax(1) == classes[4000:]
    assert confidence is not None and right.mean() < 0.6
    answered = new.max(1) >= confidence
    assert right[answered].mean() == pytest.approx(0.7, abs=0.03) and answered.mean() > 0.1


# --- the file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"confidence": None, "temperature": 0.1 + 0.2, "mass": 1 / 3}])
def test_a_calibration_comes_back_as_it_was(tmp_path: Path, changes: dict[str, Any]) -> None:
    calibration = CALIBRATION.model_copy(update=changes)
    save_calibration(tmp_path, calibration)
    assert load_calibration(tmp_path) == calibration
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 0.0}, {"coverage": 1.0}, {"rmse_decoding": "mode"}, {"colour": "red"}, {"counts": None}],
)
def test_a_calibration_that_is_wrong_is_a_fault(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_json(tmp_path / "calibration.json", CALIBRATION.model_dump() | changes)
    with pytest.raises(UserError, match=f"{tmp_path} holds no calibration: .*{next(iter(changes))}") as caught:
        load_calibration(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_calibration_that_is_missing_or_cut_short_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} holds no calibration: .*No such file.*; `dvc repro`"):
        load_calibration(tmp_path)
    save_calibration(tmp_path, CALIBRATION)
    path = tmp_path / "calibration.json"
    for damaged in (b"", path.read_bytes()[:-4], b"\xff\xfe"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{tmp_path} holds no calibration"):
            load_calibration(tmp_path)
