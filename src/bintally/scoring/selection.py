"""Which bins to look at: twins, examples of each count, the most blurred, the most doubtful."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import laplace

from bintally.scoring.metrics import Counts, Floats, LabelledPredictions, columns

SHARPNESS_WIDTH = 256


def twins(groups: Sequence[str]) -> Counts:
    """Rows of two photographs of one bin, the first two of every group that has several: int64 (pairs, 2).

    Args:
        groups: the group of each bin, in order of id.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    return np.array([rows[:2] for rows in members.values() if len(rows) > 1], dtype=np.int64).reshape(-1, 2)


def drawn(rows: int, number: int, seed: int) -> Counts:
    """At most ``number`` of so many rows, drawn at random, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:number])


def examples(counts: Counts, number: int, seed: int) -> Counts:
    """Rows of at most ``number`` bins of each count, drawn at random: by count, then ascending."""
    by_count = [np.flatnonzero(counts == count) for count in np.unique(counts)]
    return np.concatenate([rows[drawn(len(rows), number, seed)] for rows in by_count])


def sharpness(image: bytes) -> float:
    """Variance of the Laplacian of a photograph in grey, 0 to 255, brought to a width of SHARPNESS_WIDTH pixels.

    The less, the more blurred (Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy: a
    comparative study"). At one width, as the measure depends on the size of what is seen, in pixels.
    """
    with Image.open(io.BytesIO(image)) as opened:
        height = max(1, round(SHARPNESS_WIDTH * opened.height / opened.width))
        grey = opened.convert("L").resize((SHARPNESS_WIDTH, height), Image.Resampling.BOX)
    return float(laplace(np.asarray(grey, np.float64)).var())


def entropy(probabilities: Floats) -> Floats:
    """Of each distribution, in nats: float64 (n,) of (n, classes) whose rows sum to 1."""
    return np.asarray(-(probabilities * np.log(probabilities.clip(1e-12))).sum(1))


def unlikeliest(scored: LabelledPredictions, number: int) -> Counts:
    """Rows of the bins whose record has the least probability, the least first."""
    return np.argsort(-columns(scored)["loss"], kind="stable")[:number]


def least_certain(scored: LabelledPredictions, number: int) -> Counts:
    """Rows of the bins whose distribution has the most entropy, the most first."""
    return np.argsort(-entropy(scored.probabilities), kind="stable")[:number]
