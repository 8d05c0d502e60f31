"""What photographs of one bin say together: the model errs alike on them. No torch.

A bin that hides an item hides it from every photograph of it. That is a lean, common to the photographs of a group,
towards higher or lower counts: with lean b the probability of count c is as exp(b c) times the calibrated one, and b is
normal about 0. Its standard deviation, in nats an item, is the kinship; with 0 photographs say what each says alone.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from bintally.model.calibration import Floats

NODES = 15  # of Gauss-Hermite quadrature over the lean
MOST = 3.0


def leanings(probabilities: Floats, counts: Sequence[int], kinship: float) -> tuple[Floats, Floats]:
    """The distributions under each lean: (nodes, n, counts), and the weight of each lean: (nodes,), summing to 1."""
    places, weights = np.polynomial.hermite_e.hermegauss(NODES)
    leans = kinship * places[:, None, None] * (np.asarray(counts) - np.mean(counts))
    logs = np.log(probabilities.clip(1e-300)) + leans
    leaning = np.exp(logs - logs.max(2, keepdims=True))
    return leaning / leaning.sum(2, keepdims=True), weights / weights.sum()


def members(groups: Sequence[str]) -> NDArray[np.intp]:
    """(n,) the number of each photograph's group."""
    return np.unique(np.asarray(groups), return_inverse=True)[1]


def together(likelihoods: Floats, weights: Floats, member: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """What a group's photographs say of its lean.

    Args:
        likelihoods: (nodes, n) of what was seen of each photograph, under each lean.
        weights: (nodes,) of the leans before anything was seen.

    Returns:
        (groups,) the logarithm of each group's likelihood, and (nodes, groups) the weights of its leans after.
    """
    logs = np.zeros((len(weights), member.max(initial=-1) + 1))
    np.add.at(logs.T, member, np.log(likelihoods.clip(1e-300)).T)
    logs += np.log(weights)[:, None]
    top = logs.max(0)
    scaled = np.exp(logs - top)
    total = scaled.sum(0)
    return top + np.log(total), scaled / total


def fit_kinship(
    probabilities: Floats, classes: NDArray[np.int64], counts: Sequence[int], groups: Sequence[str]
) -> float:
    """The kinship under which the true counts of groups of two photographs or more are likeliest.

    Args:
        probabilities: (n, counts), calibrated.
        classes: (n,) the true class of each.
        groups: (n,) which are photographs of one bin.
    """
    member = members(groups)
    several = np.bincount(member)[member] > 1
    if not several.any():
        return 0.0
    probabilities, classes = probabilities[several], classes[several]
    member = np.unique(member[several], return_inverse=True)[1]

    def loss(kinship: float) -> float:
        leaning, weights = leanings(probabilities, counts, kinship)
        return -float(together(leaning[:, np.arange(len(classes)), classes], weights, member)[0].sum())

    found = float(minimize_scalar(loss, bounds=(0.0, MOST), method="bounded", options={"xatol": 1e-4}).x)
    return found if loss(found) < loss(0.0) else 0.0
