"""What is shown is what it is said to be: the blurred are blurred, twins are one bin, the doubtful are in order."""

import itertools

import numpy as np

from bintally.demo.warehouse import DemoWarehouse
from bintally.scoring import selection
from bintally.scoring.metrics import LabelledPredictions

SCORED = LabelledPredictions(
    probabilities=np.array([[0.9, 0.1, 0.0], [0.3, 0.4, 0.3], [0.05, 0.9, 0.05], [0.0, 0.2, 0.8]]),
    truth=np.array([1, 2, 3, 2]),
    groups=["a", "b", "c", "d"],
    counts=[1, 2, 3],
)


def test_blurred_photographs_are_the_least_sharp() -> None:
    warehouse = DemoWarehouse(seed=3)

    def sharpness(fault: str | None) -> list[float]:
        numbers = (number for number in itertools.count(1) if warehouse.fault(number) == fault)
        images = [warehouse.image(number) for number in itertools.islice(numbers, 6)]
        return [selection.sharpness(image) for image in images if image is not None]

    blurred, sharp = sharpness("blurred"), sharpness(None)
    assert len(blurred) == len(sharp) == 6
    assert max(blurred) < min(sharp)


def test_twins_are_the_first_two_photographs_of_one_group() -> None:
    groups = ["a", "b", "a", "c", "b", "a"]
    assert selection.twins(groups).tolist() == [[0, 2], [1, 4]]
    assert selection.twins(["a", "b"]).shape == (0, 2)


def test_examples_are_of_every_count_and_the_same_each_time() -> None:
    counts = np.array([2, 1, 2, 2, 3, 1, 2])
    rows = selection.examples(counts, 2, seed=1)
    assert counts[rows].tolist() == [1, 1, 2, 2, 3]
    assert len(set(rows.tolist())) == len(rows)
    assert rows.tolist() == selection.examples(counts, 2, seed=1).tolist()
    drawn = {tuple(selection.examples(counts, 2, seed).tolist()) for seed in range(8)}
    assert len(drawn) > 1, "not drawn but taken"


def test_the_unlikeliest_records_and_the_least_certain_answers_come_first() -> None:
    assert selection.unlikeliest(SCORED, 3).tolist() == [2, 3, 1]
    assert selection.least_certain(SCORED, 2).tolist() == [1, 3]
    np.testing.assert_allclose(selection.entropy(np.array([[0.5, 0.5], [1, 0]])), [np.log(2), 0])
