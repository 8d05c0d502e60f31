"""Selections of bins to look at: pairs, examples of each count, the most blurred, the most doubtful."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import laplace
from scipy.special import entr

from bintally.scoring.metrics import Counts, Floats, LabelledPredictions, columns

SHARPNESS_WIDTH = 256


def same_bin_pairs(groups: Sequence[str]) -> Counts:
    """The rows of the first two photographs of every group that has several: (pairs, 2)."""
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    return np.array([rows[:2] for rows in members.values() if len(rows) > 1], dtype=np.int64).reshape(-1, 2)


def random_rows(rows: int, number: int, seed: int) -> Counts:
    """Draw at most ``number`` of the rows 0 to ``rows`` - 1, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:number])


def examples(counts: Counts, number: int, seed: int) -> Counts:
    """Draw the rows of at most ``number`` bins of each count: by count, then ascending."""
    by_count = [np.flatnonzero(counts == count) for count in np.unique(counts)]
    return np.concatenate([rows[random_rows(len(rows), number, seed)] for rows in by_count])


def sharpness(image: Image.Image) -> float:
    """The variance of the Laplacian of a photograph, in grey from 0 to 255; low where it is blurred.

    Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy: a comparative study". The photograph is
    resized to a width of SHARPNESS_WIDTH pixels, as the measure depends on the size of objects in pixels.
    """
    height = max(1, round(SHARPNESS_WIDTH * image.height / image.width))
    grey = image.convert("L").resize((SHARPNESS_WIDTH, height), Image.Resampling.BOX)
    return float(laplace(np.asarray(grey, np.float64)).var())


def entropy(probabilities: Floats) -> Floats:
    """The entropy of each distribution, nats: (n,) of (n, classes)."""
    return np.asarray(entr(probabilities).sum(1))


def least_likely_records(predictions: LabelledPredictions, number: int) -> Counts:
    """The rows of the bins with the lowest probability of the record, the lowest first."""
    return np.argsort(-columns(predictions)["loss"], kind="stable")[:number]


def least_certain(predictions: LabelledPredictions, number: int) -> Counts:
    """The rows of the bins with the highest entropy of the prediction, the highest first."""
    return np.argsort(-entropy(predictions.probabilities), kind="stable")[:number]
