"""Metrics of a test set, against values worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bintally.scoring import metrics
from bintally.scoring.metrics import LabelledPredictions, confusion, evaluate, per_class, reliability, risk_coverage

BY_HAND = LabelledPredictions(
    probabilities=np.array(
        [
            [0.72, 0.18, 0.10],  # most probable 1, mean 1.38
            [0.10, 0.78, 0.12],  # most probable 2, mean 2.02
            [0.52, 0.08, 0.40],  # most probable 1, mean 1.88
            [0.03, 0.05, 0.92],  # most probable 3, mean 2.89
        ]
    ),
    truth=np.array([1, 3, 3, 3]),
    groups=["a", "b", "c", "d"],
    counts=[1, 2, 3],
)


def test_resamples_drawn_in_parts_are_those_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = evaluate(half_right(), 50, seed=1)["interval_95"]
    monkeypatch.setattr(metrics, "WEIGHTS_AT_ONCE", 900)
    in_parts = evaluate(half_right(), 50, seed=1)["interval_95"]
    for name, interval in at_once["most_probable"].items():
        assert in_parts["most_probable"][name] == pytest.approx(interval, rel=1e-12)
    assert in_parts["loss"] == pytest.approx(at_once["loss"], rel=1e-12)


def half_right(number: int = 300) -> LabelledPredictions:
    """Bins of five counts, each a group of its own, about half of them predicted correctly."""
    random = np.random.default_rng(0)
    truth = random.integers(1, 6, number)
    logits = random.normal(size=(number, 5)) + 1.3 * np.eye(5)[truth - 1]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return LabelledPredictions(probabilities, truth, [f"g{place}" for place in range(number)], [1, 2, 3, 4, 5])


def width(interval: list[float]) -> float:
    return interval[1] - interval[0]


def test_metrics_are_those_worked_out_by_hand() -> None:
    metrics = evaluate(BY_HAND, resamples=100, seed=1)
    assert (metrics["images"], metrics["groups"]) == (4, 4)
    assert metrics["most_probable"] == pytest.approx(
        {"accuracy": 2 / 4, "mae": 3 / 4, "within_one": 3 / 4, "rmse": math.sqrt(5 / 4)}
    )
    assert metrics["rounded_mean"] == pytest.approx(
        {"accuracy": 2 / 4, "mae": 2 / 4, "within_one": 1.0, "rmse": math.sqrt(2 / 4)}
    )
    assert metrics["median"] == metrics["most_probable"]
    assert metrics["loss"] == pytest.approx(-sum(map(math.log, (0.72, 0.12, 0.40, 0.92))) / 4)
    # Two of the four have a confidence between 0.7 and 0.8, one of these is right.
    gaps = (abs(0.72 + 0.78 - 1), 0.52, abs(0.92 - 1))
    assert metrics["calibration_error"] == pytest.approx(sum(gaps) / 4)


def test_tables_are_those_worked_out_by_hand() -> None:
    assert confusion(BY_HAND, "most_probable").tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert confusion(BY_HAND, "rounded_mean").tolist() == [[1, 0, 0], [0, 0, 0], [0, 2, 1]]
    one, three = per_class(BY_HAND, "most_probable")
    assert one == {"count": 1, "images": 1, "accuracy": 1.0, "rmse": 0.0}
    assert three == pytest.approx({"count": 3, "images": 3, "accuracy": 1 / 3, "rmse": math.sqrt(5 / 3)})
    assert reliability(BY_HAND) == [
        pytest.approx({"confidence": 0.52, "accuracy": 0.0, "images": 1}),
        pytest.approx({"confidence": 0.75, "accuracy": 0.5, "images": 2}),
        pytest.approx({"confidence": 0.92, "accuracy": 1.0, "images": 1}),
    ]


def test_risk_by_coverage_is_as_worked_out_by_hand() -> None:
    # From the most confident on: right, wrong, right, wrong.
    assert risk_coverage(BY_HAND) == [
        {"answered": answered / 4, "risk": pytest.approx(wrong / answered)}
        for answered, wrong in ((1, 0), (2, 1), (3, 1), (4, 2))
    ]
    rows = risk_coverage(half_right())
    assert [row["answered"] for row in rows] == pytest.approx([share / 20 for share in range(1, 21)])
    assert rows[-1]["risk"] == pytest.approx(1 - evaluate(half_right(), 100, 1)["most_probable"]["accuracy"])


def test_certainty_right_or_wrong_gives_finite_metrics() -> None:
    certain = replace(BY_HAND, probabilities=np.eye(3)[[0, 2, 2, 0]])
    metrics = evaluate(certain, resamples=100, seed=1)
    assert metrics["most_probable"]["accuracy"] == 3 / 4
    assert metrics["calibration_error"] == pytest.approx(1 / 4)
    assert math.isfinite(metrics["loss"]) and metrics["loss"] > 5
    # However a bin of one photograph and one of three are drawn, all are right.
    right = replace(certain, probabilities=np.eye(3)[[0, 2, 2, 2]], groups=["a", "b", "b", "b"])
    assert evaluate(right, resamples=100, seed=1)["interval_95"]["most_probable"]["accuracy"] == [1, 1]
    assert reliability(certain) == [{"confidence": 1.0, "accuracy": 3 / 4, "images": 4}]


def test_intervals_contain_the_value_and_have_the_width_of_theory() -> None:
    scored = half_right()
    metrics = evaluate(scored, resamples=1000, seed=1)
    inside = metrics["interval_95"]
    for place in (("loss",), *((rule, name) for rule in ("most_probable", "rounded_mean") for name in metrics[rule])):
        value: Any = metrics
        interval: Any = inside
        for name in place:
            value, interval = value[name], interval[name]
        assert interval[0] < value < interval[1], place
    accuracy = metrics["most_probable"]["accuracy"]
    assert width(inside["most_probable"]["accuracy"]) == pytest.approx(
        2 * 1.96 * math.sqrt(accuracy * (1 - accuracy) / 300), rel=0.15
    )


def test_photographs_of_the_same_bin_do_not_make_an_interval_narrower() -> None:
    scored = half_right()
    copies = replace(
        scored,
        probabilities=scored.probabilities.repeat(4, axis=0),
        truth=scored.truth.repeat(4),
        groups=[group for group in scored.groups for _ in range(4)],
    )
    once, grouped = (evaluate(some, resamples=1000, seed=1) for some in (scored, copies))
    apart = evaluate(replace(copies, groups=[str(place) for place in range(1200)]), resamples=1000, seed=1)
    assert (grouped["images"], grouped["groups"]) == (1200, 300)
    for name in ("accuracy", "rmse", "mae"):
        assert grouped["most_probable"][name] == pytest.approx(once["most_probable"][name])
        widths = [width(some["interval_95"]["most_probable"][name]) for some in (once, grouped, apart)]
        assert widths[1] == pytest.approx(widths[0], rel=1e-6)
        # As if there were four times as many bins: half as wide, and wrong.
        assert widths[2] == pytest.approx(widths[1] / 2, rel=0.2)


def test_a_seed_gives_one_result_and_another_seed_gives_other_intervals() -> None:
    first, again, other = (evaluate(half_right(), resamples=200, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first["interval_95"] != other["interval_95"]
    assert {**first, "interval_95": None} == {**other, "interval_95": None}
