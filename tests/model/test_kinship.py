"""How far a model errs alike on photographs of one bin is found where it is there, and only there."""

import numpy as np
import pytest

from bintally.model.kinship import fit_kinship, leanings

COUNTS = [1, 2, 3, 4, 5]


def seen(kinship: float, groups: int = 3000) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Two photographs of each bin, whose counts were drawn with a lean they share."""
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(len(COUNTS)), 2 * groups)
    leans = np.repeat(kinship * random.standard_normal(groups), 2)
    leaning = probabilities * np.exp(leans[:, None] * np.array(COUNTS))
    leaning /= leaning.sum(1, keepdims=True)
    classes = (leaning.cumsum(1) < random.random((2 * groups, 1))).sum(1)
    return probabilities, classes, [str(row // 2) for row in range(2 * groups)]


@pytest.mark.parametrize("kinship", [0.0, 0.6])
def test_the_kinship_that_was_there_is_found(kinship: float) -> None:
    probabilities, classes, groups = seen(kinship)
    assert fit_kinship(probabilities, classes, COUNTS, groups) == pytest.approx(kinship, abs=0.1)


def test_bins_of_one_photograph_each_have_none() -> None:
    probabilities, classes, groups = seen(0.6, groups=10)
    assert fit_kinship(probabilities, classes, COUNTS, [str(row) for row in range(len(groups))]) == 0.0


def test_without_kinship_every_lean_is_the_distribution_itself() -> None:
    probabilities, _, _ = seen(0.0, groups=2)
    leaning, weights = leanings(probabilities, COUNTS, 0.0)
    np.testing.assert_allclose(leaning, np.broadcast_to(probabilities, leaning.shape))
    assert weights.sum() == pytest.approx(1)
