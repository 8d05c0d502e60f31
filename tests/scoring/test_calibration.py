"""Calibration: what is fitted on some bins holds on others."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bintally.errors import UserError
from bintally.scoring.calibration import (
    Floats,
    calibrated,
    conformal_scores,
    fit_confidence_threshold,
    fit_conformal_threshold,
    fit_temperature,
    load_calibration,
    predict_counts,
    prediction_sets,
    save_calibration,
)
from small import CALIBRATION

COUNTS = [1, 2, 3, 4, 5]


def softmax(logits: Floats) -> Floats:
    weights = np.exp(logits)
    return np.asarray(weights / weights.sum(1, keepdims=True))


def sampled(number: int, seed: int) -> tuple[Floats, np.ndarray]:
    """Distributions over five classes, about half with several peaks, and a class drawn from each."""
    random = np.random.default_rng(seed)
    probabilities = softmax(1.2 * random.normal(size=(number, 5)))
    return probabilities, (random.random((number, 1)) > probabilities.cumsum(1)).sum(1)


# --- predictions ----------------------------------------------------------------------------------------


def test_a_prediction_has_counts_by_every_rule_a_set_and_doubt() -> None:
    predictions = predict_counts(np.array([[0.9, 0.1, 0.0], [0.45, 0.1, 0.45]]), CALIBRATION)  # of 2, 3 and 5
    assert {rule: counts.tolist() for rule, counts in predictions.by_rule.items()} == {
        "most_probable": [2, 2],
        "rounded_mean": [2, 3],
        "median": [2, 3],
    }
    assert (predictions.low.tolist(), predictions.high.tolist()) == ([2, 2], [3, 5])
    assert predictions.unsure.tolist() == [False, True]
    always_unsure = CALIBRATION.model_copy(update={"confidence_threshold": None})
    assert predict_counts(np.array([[1.0, 0.0, 0.0]]), always_unsure).unsure.all()


# --- probabilities -------------------------------------------------------------------------------------


def test_probabilities_are_those_of_the_chosen_counts_at_the_temperature() -> None:
    logs = np.log([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]])
    np.testing.assert_allclose(calibrated(logs, [1, 2, 4], [1, 2, 4], 1.0), np.exp(logs))
    np.testing.assert_allclose(calibrated(logs, [1, 2, 4], [1, 4], 1.0), [[5 / 8, 3 / 8], [1 / 2, 1 / 2]])
    np.testing.assert_allclose(calibrated(logs, [1, 2, 4], [2, 4], 0.5), [[4 / 13, 9 / 13], [64 / 65, 1 / 65]])
    certain = calibrated(np.array([[-2e4, -1e4, -3e4]]), [1, 2, 4], [1, 2, 4], 0.05)
    np.testing.assert_array_equal(certain, [[0, 1, 0]])


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_distorted_a_model_is_found(temperature: float) -> None:
    probabilities, classes = sampled(20_000, seed=0)
    # Not normalised: a constant added to a row changes nothing.
    logs = np.log(probabilities) * temperature + np.arange(len(classes))[:, None] % 7
    assert fit_temperature(logs, classes) == pytest.approx(temperature, rel=0.03)


# --- sets ----------------------------------------------------------------------------------------------


def test_a_set_grows_from_the_most_probable_count_to_the_more_probable_of_the_two_beside_it() -> None:
    # From 0.4 to 0.1, over which alone 0.3 is reached, to 0.3, to 0.08, to 0.12.
    np.testing.assert_allclose(conformal_scores(np.array([[0.12, 0.08, 0.4, 0.1, 0.3]])), [[0.88, 0.8, 0, 0.4, 0.5]])
    np.testing.assert_allclose(conformal_scores(np.array([[0.25, 0.25, 0.25, 0.25]])), [[0, 0.25, 0.5, 0.75]])


def grown(row: list[float]) -> list[float]:
    """The result of :func:`conformal_scores` for one row."""
    inside = [int(np.argmax(row))]
    before = {inside[0]: 0.0}
    while len(inside) < len(row):
        beside = [at for at in (min(inside) - 1, max(inside) + 1) if 0 <= at < len(row)]
        best = max(beside, key=lambda at: row[at])
        before[best] = sum(row[at] for at in inside)
        inside.append(best)
    return [before[at] for at in range(len(row))]


def test_scores_are_those_of_sets_grown_one_by_one() -> None:
    probabilities, _ = sampled(500, seed=1)
    np.testing.assert_allclose(conformal_scores(probabilities), [grown(row) for row in probabilities.tolist()])


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 0.95])
def test_a_set_holds_the_most_probable_count_and_grows_until_it_holds_more_than_the_threshold(threshold: float) -> None:
    probabilities, _ = sampled(500, seed=2)
    low, high = prediction_sets(probabilities, threshold)
    for row, first, last in zip(probabilities, low, high, strict=True):
        assert first <= row.argmax() <= last
        assert row[first : last + 1].sum() > threshold or (first, last) == (0, 4)
        # Before the last that joined, which is at one of the ends.
        assert first == last or row[first : last + 1].sum() - max(row[first], row[last]) <= threshold


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("coverage", [0.7, 0.9])
def test_sets_cover_new_bins_even_where_probabilities_are_wrong(temperature: float, coverage: float) -> None:
    probabilities, classes = sampled(24_000, seed=3)
    distorted = softmax(np.log(probabilities) / temperature)
    low, high = prediction_sets(distorted[4000:], fit_conformal_threshold(distorted[:4000], classes[:4000], coverage))
    covered = (low <= classes[4000:]) & (classes[4000:] <= high)
    assert coverage - 0.015 < covered.mean() < coverage + 0.015


def test_sets_cover_on_average_where_they_were_fitted_on_few_bins() -> None:
    probabilities, classes = sampled(20_000, seed=4)
    covered = []
    for few in np.arange(20_000).reshape(1000, 20):
        low, high = prediction_sets(
            probabilities[few[9:]], fit_conformal_threshold(probabilities[few[:9]], classes[few[:9]], 0.8)
        )
        covered.append(((low <= classes[few[9:]]) & (classes[few[9:]] <= high)).mean())
    assert 0.79 < np.mean(covered) < 0.81  # of ten that are exchangeable the new one is among the first eight


def test_too_few_bins_for_the_coverage_give_sets_of_all_counts() -> None:
    probabilities, classes = sampled(2000, seed=5)
    low, high = prediction_sets(probabilities, fit_conformal_threshold(probabilities[:9], classes[:9], 0.95))
    assert set(low) == {0} and set(high) == {4}


# --- being unsure --------------------------------------------------------------------------------------

# From the most confident on: right, wrong, right, right.
ANSWERS = np.array([[0.8, 0.2], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
TRUE = np.array([1, 0, 1, 1])


@pytest.mark.parametrize(("target", "confidence"), [(0.95, 0.9), (0.76, 0.9), (0.75, 0.6), (0.6, 0.6)])
def test_as_many_answers_as_possible_are_not_unsure(target: float, confidence: float) -> None:
    assert fit_confidence_threshold(ANSWERS, TRUE, target) == pytest.approx(confidence, abs=2e-6)


def test_equally_confident_answers_are_all_given_or_none() -> None:
    equal = np.array([[0.9, 0.1], [0.9, 0.1], [0.7, 0.3]])
    assert fit_confidence_threshold(equal, np.array([0, 1, 0]), 0.8) is None
    assert fit_confidence_threshold(equal, np.array([0, 0, 1]), 0.8) == pytest.approx(0.9, abs=2e-6)


def test_where_no_answers_are_right_often_enough_all_are_unsure() -> None:
    assert fit_confidence_threshold(ANSWERS, 1 - TRUE, 0.8) is None


def test_answers_that_are_not_unsure_reach_the_target_precision_on_new_bins() -> None:
    probabilities, classes = sampled(24_000, seed=6)
    threshold = fit_confidence_threshold(probabilities[:4000], classes[:4000], 0.7)
    right = probabilities.argmax(1) == classes
    assert threshold is not None and right.mean() < 0.6
    answered = probabilities.max(1) >= threshold
    assert right[:4000][answered[:4000]].mean() >= 0.7
    assert right[4000:][answered[4000:]].mean() == pytest.approx(0.7, abs=0.03) and answered.mean() > 0.1


# --- rounding -------------------------------------------------------------------------------------------


def test_thresholds_have_six_digits_and_stay_on_the_safe_side() -> None:
    probabilities, classes = sampled(400, seed=7)
    conformal = fit_conformal_threshold(probabilities, classes, 0.9)
    confidence = fit_confidence_threshold(probabilities, classes, 0.7)
    assert confidence is not None and (conformal, confidence) == (round(conformal, 6), round(confidence, 6))
    low, high = prediction_sets(probabilities, conformal)
    assert ((low <= classes) & (classes <= high)).mean() >= 0.9
    for values, threshold in ((conformal_scores(probabilities), conformal), (probabilities.max(1), confidence)):
        assert np.abs(values - threshold).min() > 1e-10


def test_certain_predictions_have_thresholds_that_do_not_depend_on_the_last_digit() -> None:
    certain, classes = np.eye(3)[[0, 1, 2] * 10], np.array([0, 1, 2] * 10)
    nearly = certain * (1 - 1e-16) + 1e-17
    for fit in (fit_conformal_threshold, fit_confidence_threshold):
        assert fit(certain, classes, 0.9) == fit(nearly, classes, 0.9)


# --- the file ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what stands for a model."""
    for name in ("model.safetensors", "card.json"):
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize(
    "changes", [{}, {"confidence_threshold": None, "temperature": 0.1 + 0.2, "conformal_threshold": 1 / 3}]
)
def test_a_saved_calibration_is_loaded_unchanged(folder: Path, changes: dict[str, Any]) -> None:
    calibration = CALIBRATION.model_copy(update=changes)
    save_calibration(folder, calibration)
    assert load_calibration(folder) == calibration
    assert sorted(path.name for path in folder.iterdir()) == ["calibration.json", "card.json", "model.safetensors"]


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.0},
        {"temperature": 1e-300},
        {"temperature": 1e300},
        {"temperature": math.inf},
        {"coverage": 1.0},
        {"rmse_decoding": "mode"},
        {"colour": "red"},
        {"counts": None},
        {"model": None},
        {"counts": []},
        {"counts": [5, 4, 3]},
        {"counts": [2, 2]},
        {"conformal_threshold": math.nan},
        {"confidence_threshold": math.nan},
    ],
)
def test_an_invalid_calibration_is_a_user_error(folder: Path, changes: dict[str, Any]) -> None:
    save_calibration(folder, CALIBRATION)
    path = folder / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=f"{folder} holds no calibration: {next(iter(changes))}.*: ") as caught:
        load_calibration(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "card.json"])
def test_a_calibration_of_another_model_is_a_user_error(folder: Path, name: str) -> None:
    save_calibration(folder, CALIBRATION)
    (folder / name).write_text("of another model")
    with pytest.raises(UserError, match=rf"{folder}: calibration\.json was fitted for another model .*copy all files"):
        load_calibration(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{folder} holds no calibration: .*No such file.*{name}"):
        load_calibration(folder)
    assert load_calibration(folder, beside_model=False) == CALIBRATION


def test_a_missing_or_truncated_calibration_is_a_user_error(folder: Path) -> None:
    with pytest.raises(UserError, match=f"{folder} holds no calibration: .*No such file.*; `dvc repro`"):
        load_calibration(folder)
    save_calibration(folder, CALIBRATION)
    path = folder / "calibration.json"
    for damaged in (b"", path.read_bytes()[:-4], b"\xff\xfe", b"[" * 100_000, b" " * 5_000_000):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{folder} holds no calibration"):
            load_calibration(folder)
