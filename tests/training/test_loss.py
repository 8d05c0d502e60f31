"""What training makes small, against values worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from toys import CPU, parameters

from bintally.training.loss import TrainingLoss

COUNTS = [1, 2, 4]
PROBABILITIES = [[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.6, 0.2, 0.2], [0.3, 0.3, 0.4]]
TARGETS = [0, 2, 1, 0]  # the counts 1, 4, 2 and 1
ERRORS = [1.0, -0.7, -0.2, 1.5]  # of the expected counts 2, 3.3, 1.8 and 2.5


def objective(**train: Any) -> TrainingLoss:
    return TrainingLoss(parameters(counts=COUNTS, **train).train, COUNTS, CPU)


def losses(**train: Any) -> list[float]:
    # A constant of the row's own changes no distribution.
    logits = torch.tensor(PROBABILITIES).log() + torch.arange(4)[:, None]
    found: list[float] = objective(**train).losses(logits, torch.tensor(TARGETS), np.arange(4)).tolist()
    return found


def entropy(label: list[float], probabilities: list[float]) -> float:
    return -sum(share * math.log(p) for share, p in zip(label, probabilities, strict=True))


def test_a_plain_loss_is_the_cross_entropy() -> None:
    assert losses() == pytest.approx([-math.log(p) for p in (0.5, 0.7, 0.2, 0.3)])


def test_a_label_is_spread_over_near_counts_by_their_distance_in_items_and_over_all_alike() -> None:
    # Distances of 1, 2 and 3 items, over a deviation of 2.
    one, two, three = (math.exp(-(items**2) / 8) for items in (1, 2, 3))
    bells = [[1, one, three], [one, 1, two], [three, two, 1]]
    spread = [[share / sum(bell) for share in bell] for bell in bells]
    expected = [entropy(spread[target], row) for target, row in zip(TARGETS, PROBABILITIES, strict=True)]
    assert losses(label_spread=2.0) == pytest.approx(expected)
    smoothed = [[0.7 * share + 0.1 for share in bell] for bell in spread]
    expected = [entropy(smoothed[target], row) for target, row in zip(TARGETS, PROBABILITIES, strict=True)]
    assert losses(label_spread=2.0, label_smoothing=0.3) == pytest.approx(expected)


def test_a_squared_error_is_of_the_expected_count_in_items() -> None:
    added = np.subtract(losses(squared_error=0.5), losses())
    assert added.tolist() == pytest.approx([0.5 * error**2 for error in ERRORS], abs=1e-6)


def test_twins_are_to_be_off_by_the_same() -> None:
    logits, targets = torch.tensor(PROBABILITIES).log(), torch.tensor(TARGETS)

    def of_twins(weight: float, groups: list[int]) -> float:
        return float(objective(twins=weight).of_twins(logits, targets, torch.tensor(groups)))

    assert of_twins(0.5, [7, 7, 8, 9]) == pytest.approx(0.5 * 1.7**2)
    # Three photographs of one bin are three pairs.
    assert of_twins(0.5, [7, 8, 7, 7]) == pytest.approx(0.5 * (1.2**2 + 0.5**2 + 1.7**2))
    assert of_twins(0.5, [6, 7, 8, 9]) == of_twins(0.0, [7, 7, 7, 7]) == 0
